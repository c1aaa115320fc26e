"""Autoencoders, which turn images into smaller latents and back, for latent diffusion."""

from fewstep.autoencoders.base import Autoencoder, AutoencoderConfig, Decoder, DecoderDescription

__all__ = ["Autoencoder", "AutoencoderConfig", "Decoder", "DecoderDescription"]
