"""Pipelines of diffusers with random weights, of the real classes and a few thousand parameters."""

from __future__ import annotations

import json
import string

import torch

TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def clip_tokenizer(folder):
    """A tokenizer of single letters, sixteen tokens a text."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    letters = [letter + end for letter in string.ascii_lowercase + string.digits for end in ("", "</w>")]
    vocabulary = {token: place for place, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)


def clip(*, projected=False):
    """A text encoder; SDXL's second one and both of SD3 project."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        **TEXT, vocab_size=74, max_position_embeddings=16, projection_dim=16, bos_token_id=72, eos_token_id=73
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def autoencoder(**more):
    """Two levels: a picture of 16 pixels is 8 latents a side."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, sample_size=16, **more,
    )  # fmt: skip


def unet(**more):
    """A U-Net on 4×8×8 latents that reads text."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4, **more,
    )  # fmt: skip


def stable_diffusion(folder):
    """SD: a U-Net, ε, one text encoder."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    return StableDiffusionPipeline(
        autoencoder(), clip(), clip_tokenizer(folder / "words"), unet(cross_attention_dim=16), scheduler, None, None,
        requires_safety_checker=False,
    )  # fmt: skip


def sdxl(folder):
    """SDXL: two text encoders, a pooled embedding and sizes."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    tokenizer = clip_tokenizer(folder / "words")
    network = unet(
        cross_attention_dim=32, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=16 + 6 * 4,
    )  # fmt: skip
    scheduler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    return StableDiffusionXLPipeline(
        autoencoder(), clip(), clip(projected=True), tokenizer, tokenizer, network, scheduler, add_watermarker=False
    )


def sd3(folder):
    """SD3: a transformer on flow matching, two projected text encoders and no third."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    tokenizer = clip_tokenizer(folder / "words")
    network = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=4,
        num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=8, pooled_projection_dim=32,
        pos_embed_max_size=8,
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        network, FlowMatchEulerDiscreteScheduler(shift=3.0), autoencoder(shift_factor=0.06, scaling_factor=1.5),
        clip(projected=True), tokenizer, clip(projected=True), tokenizer, None, None,
    )  # fmt: skip


def pixart(folder):
    """PixArt-α: a transformer that predicts its variance too, with T5."""
    from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0)]
    vocabulary += [(letter, -2.0) for letter in string.ascii_lowercase + string.digits]
    tokenizer = T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=16)
    text = T5Config(vocab_size=64, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2)
    network = PixArtTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=8, num_layers=1, attention_head_dim=4,
        num_attention_heads=2, cross_attention_dim=8, caption_channels=16, norm_num_groups=4,
    )  # fmt: skip
    return PixArtAlphaPipeline(tokenizer, T5EncoderModel(text), autoencoder(), network, DPMSolverMultistepScheduler())


MAKERS = {"SD": stable_diffusion, "SDXL": sdxl, "SD3": sd3, "PixArt": pixart}


def saved(kind, folder):
    """Write a pipeline with weights of one seed; return its folder."""
    torch.manual_seed(0)
    MAKERS[kind](folder).save_pretrained(str(folder / "pipeline"))
    return folder / "pipeline"
