"""Pictures that explain a run or a recipe: its noise, its training times and its sampler."""
