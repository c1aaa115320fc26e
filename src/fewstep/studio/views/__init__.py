"""The views of the studio's page, one module each."""
