"""RG-LCD, MLCM and Hyper-SD on networks of diffusers' own classes, by low-rank updates as the papers train them."""

import pytest
import torch

from attar import ledger
from attar.artifacts import load
from attar.artifacts.adapted import AdaptedSampler
from attar.diffusion.specs import DiscreteProcess, FlowProcess
from attar.methods.sampler.core.reward import GivenReward
from attar.nets.denoiser_specs import DiffusersNet
from attar.spec import build

UNET = DiffusersNet(
    cls="UNet2DConditionModel",
    config={
        "block_out_channels": [8, 16], "norm_num_groups": 4, "layers_per_block": 1, "attention_head_dim": 4,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "cross_attention_dim": 6,
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    },
)  # fmt: skip
DIT = DiffusersNet(
    cls="DiTTransformer2DModel",
    config={"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 2, "patch_size": 2, "norm_num_groups": 2},
)
SD3 = DiffusersNet(
    cls="SD3Transformer2DModel",
    config={
        "patch_size": 2, "num_layers": 2, "attention_head_dim": 4, "num_attention_heads": 2, "joint_attention_dim": 8,
        "caption_projection_dim": 8, "pooled_projection_dim": 6, "pos_embed_max_size": 8,
    },
    told={"encoder_hidden_states": (2, 8), "pooled_projections": (6,)},
)  # fmt: skip
SIZES = {"train.steps": 2, "train.batch": 2, "lora": {"rank": 2}}
SYSTEMS = {
    "rg-lcd": (UNET, 6, DiscreteProcess(betas="scaled-linear"), {"proxy.hidden": 4}),
    "mlcm": (DIT, 0, DiscreteProcess(), {"rollout": 2, "across": 0.5, "across_steps": 2}),
    "hyper-sd": (
        SD3, 22, FlowProcess(shift=3.0),
        {"segments": (2, 1), "closeness": (1.0, 0.1), "fooling": (0.0, 1.0), "feedback_steps": 1, "one_step_steps": 1,
         "coupling": {"count": 4, "steps": 1}},
    ),
}  # fmt: skip


def brightness(x, condition):
    return x.flatten(1).mean(1)


@pytest.mark.parametrize("id", SYSTEMS)
def test_low_rank_updates_of_a_network_of_diffusers_are_distilled_saved_and_loaded(
    id, open_run, pictures, taught, tmp_path
):
    net, width, process, sizes = SYSTEMS[id]
    if width:
        pictures.vectors = torch.randn(3, width, generator=torch.Generator().manual_seed(0))
    teacher = taught(net, process)
    before = [parameter.clone() for parameter in teacher.given.module.parameters()]
    method = build(ledger.method_class(id), {**SIZES, **sizes}, preset="paper" if id == "rg-lcd" else "lora")
    inputs = {} if id == "mlcm" else {"reward": GivenReward.of(brightness)}
    with open_run() as run:
        made = method(run, data=pictures, teacher=teacher, **inputs)
    assert isinstance(made, AdaptedSampler)
    after = teacher.given.module.parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    again = load(made.save(tmp_path / "student"))
    drawn = again(2, ["class 0", "class 2"], steps=2)
    torch.testing.assert_close(drawn, made(2, ["class 0", "class 2"], steps=2))
    assert drawn.isfinite().all()
