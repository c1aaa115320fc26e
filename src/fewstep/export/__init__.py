"""Write a generator for programs other than fewstep: ONNX, `torch.export`, diffusers, browsers."""
