"""Losses of the transformer: gradients, what is cut off, teachers, guidance, and what is logged."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

from support.tiny_models import NUM_CLASSES, PATCH_NUMS, tiny_var, tiny_vqvae
from tandem.assembly import Preparation, assemble_var
from tandem.errors import InputError
from tandem.training.objectives import Objective, TokenBatch

SIZES = [n * n for n in PATCH_NUMS]
N = 2
CUT = sum(SIZES[:N])


@pytest.fixture(scope="module")
def quantizer():
    return tiny_vqvae().quantize


@pytest.fixture
def student():
    return tiny_var(2, 1).requires_grad_(True)


@pytest.fixture(scope="module")
def teacher():
    return tiny_var(3, 2)


@pytest.fixture
def batch():
    """Three rows; the label of the last was dropped."""
    generator = torch.Generator().manual_seed(0)
    return TokenBatch(torch.randint(64, (3, sum(SIZES)), generator=generator), torch.tensor([0, 2, NUM_CLASSES]))


SETTINGS = {
    "cross-entropy": {},
    "smoothed": {"smoothing": 0.1},
    "drafter": {"draft_steps": N, "cut": True},
    "refiner": {"draft_steps": N, "teacher": True},
    "refiner, half cross-entropy": {"draft_steps": N, "teacher": True, "alpha": 0.5},
    "refiner, guided": {"draft_steps": N, "teacher": True, "distill_cfg": 2.0},
    "drafter, guided": {"draft_steps": N, "teacher": True, "distill_cfg": 2.0, "cut": True, "alpha": 0.5},
    "guided, for all N": {"teacher": True, "distill_cfg": 2.0},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_gradients_are_finite_differences(settings, batch):
    """In float64, along random directions of all parameters, in the middle of the training."""
    student, teacher = (tiny_var(depth, depth, head_dim=8).double() for depth in (1, 2))
    quantizer = tiny_vqvae().quantize.double()
    objective = Objective(**settings | ({"teacher": teacher} if "teacher" in settings else {}))
    loss, _ = objective(student.requires_grad_(True), quantizer, batch, progress=0.4)
    loss.backward()
    generator, step = torch.Generator().manual_seed(0), 1e-5
    for _ in range(3):
        moves = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in student.parameters()]
        slope = sum((p.grad * move).sum() for p, move in zip(student.parameters(), moves, strict=True))
        sides = []
        with torch.no_grad():
            for distance in (step, -2 * step, step):
                for parameter, move in zip(student.parameters(), moves, strict=True):
                    parameter += distance * move
                sides.append(objective(student, quantizer, batch, progress=0.4)[0])
        torch.testing.assert_close(slope, (sides[0] - sides[1]) / (2 * step), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("teaching", [False, True])
def test_nothing_is_learnt_beyond_the_cut(teaching, quantizer, student, teacher, batch):
    objective = Objective(N, cut=True, teacher=teacher if teaching else None)
    seen = []

    def model(labels, inputs):
        seen.append(student(labels, inputs))
        return seen[0]

    loss, sums = objective(model, quantizer, batch)
    loss.backward()
    assert seen[0].shape[1] == CUT
    assert torch.count_nonzero(student.pos_1LC.grad[:, CUT:]) == 0
    assert torch.count_nonzero(student.lvl_embed.weight.grad[N:]) == 0
    assert all(bool(parameter.grad.any()) for parameter in student.parameters())
    assert f"loss_scale_{N}" in sums and f"loss_scale_{N + 1}" not in sums
    # and the tokens that are cut off change nothing
    other = TokenBatch(batch.ids_BL.clone(), batch.labels_B)
    other.ids_BL[:, CUT:] = 0
    assert objective(student, quantizer, other)[0] == loss


def test_weight_zero_is_no_gradient(quantizer, student, teacher, batch):
    """At the end the refiner no longer learns scales that the drafter makes."""
    logits = student(batch.labels_B, torch.zeros(3, sum(SIZES) - 1, 8)).detach().requires_grad_(True)
    Objective(N, teacher=teacher)(lambda *_: logits, quantizer, batch, progress=1.0)[0].backward()
    assert torch.count_nonzero(logits.grad[:, :CUT]) == 0
    assert bool(logits.grad[:, CUT:].any(dim=2).all())


def test_the_weight_of_the_prefix_falls_linearly(quantizer):
    objective, pyramid = Objective(N), quantizer.pyramid
    assert [objective.weights(pyramid, progress) for progress in (0, 0.25, 1)] == [
        [1, 1, 1, 1],
        [0.75, 0.75, 1, 1],
        [0, 0, 1, 1],
    ]
    assert Objective(N, cut=True).weights(pyramid, 0.25) == [1, 1]
    assert Objective().weights(pyramid, 0.25) == [1, 1, 1, 1]


def test_a_model_diverges_from_itself_by_nothing(quantizer, student, batch):
    copy = tiny_var(2, 1)
    for steps, cut in ((None, False), (N, False), (N, True)):
        loss, _ = Objective(steps, cut, teacher=copy)(student, quantizer, batch)
        loss.backward()
        assert abs(loss.item()) <= 1e-6
    assert max(parameter.grad.abs().max() for parameter in student.parameters()) <= 1e-6


def test_losses_are_those_of_torch(quantizer, student, teacher, batch):
    """Cross-entropy and divergence token by token, against the plain formulas."""
    _, inputs = quantizer.unroll(batch.ids_BL)
    with torch.no_grad():
        logits, target = (model(batch.labels_B, inputs) for model in (student, teacher))
    entropy = F.cross_entropy(logits.transpose(1, 2), batch.ids_BL, reduction="none")
    p, q = logits.softmax(-1), target.softmax(-1)
    divergence = (q * (q / p).log()).sum(-1)
    for alpha in (0, 0.3, 1):
        tokens = alpha * divergence + (1 - alpha) * entropy
        loss, sums = Objective(N, teacher=teacher, alpha=alpha)(student, quantizer, batch, progress=0.25)
        weights = torch.tensor([0.75] * CUT + [1.0] * (sum(SIZES) - CUT))
        torch.testing.assert_close(loss, (tokens * weights).sum() / sum(SIZES))
        of_scale_3 = slice(sum(SIZES[:2]), sum(SIZES[:3]))
        value, count = sums["loss_scale_3"]
        torch.testing.assert_close(value / count, tokens[:, of_scale_3].mean())
        value, count = sums["accuracy_scale_3"]
        assert value / count == (logits.argmax(-1) == batch.ids_BL)[:, of_scale_3].float().mean()


def test_the_guided_target_is_what_sampling_draws_from(quantizer, teacher, batch):
    """Scale by scale with a KV cache, as `decode_scales` guides; a dropped label gives the model without class."""
    cfg, pyramid = 1.5, quantizer.pyramid
    _, inputs = quantizer.unroll(batch.ids_BL)
    target = Objective(teacher=teacher, distill_cfg=cfg).target(batch.labels_B, inputs, pyramid)
    cond = teacher(batch.labels_B, inputs)
    uncond = teacher(torch.full_like(batch.labels_B, NUM_CLASSES), inputs)
    for scale, size in enumerate(SIZES):
        tokens = slice(pyramid.offsets[scale], pyramid.offsets[scale] + size)
        t = cfg * scale / (pyramid.num_scales - 1)
        expected = (1 + t) * cond[:, tokens] - t * uncond[:, tokens]
        torch.testing.assert_close(target[:, tokens], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(target[2], uncond[2], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(target[0], cond[0], atol=1e-2)


def test_a_teacher_may_be_prepared_for_inference(quantizer, teacher, batch):
    """Without AdaLN's weights, a third of its memory, it says the same."""
    values = teacher.state_dict().__getitem__
    folded = assemble_var(teacher.config, values, torch.float32, torch.device("cpu"), Preparation(fold_adaln=True))
    _, inputs = quantizer.unroll(batch.ids_BL)
    expected, found = (
        Objective(teacher=model, distill_cfg=1.5).target(batch.labels_B, inputs, quantizer.pyramid)
        for model in (teacher, folded)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_rows_add_up_whatever_their_division(quantizer, student, teacher, batch):
    """A sum over rows: micro-batches and workers may divide them as they like."""
    objective = Objective(N, teacher=teacher, alpha=0.5)
    whole, sums = objective(student, quantizer, batch, 0.5)
    pieces = [
        objective(student, quantizer, TokenBatch(*part), 0.5)
        for part in zip(batch.ids_BL.split([2, 1]), batch.labels_B.split([2, 1]), strict=True)
    ]
    torch.testing.assert_close(sum(loss for loss, _ in pieces), whole)
    for name, pair in sums.items():
        for i in range(2):
            torch.testing.assert_close(sum(more[name][i] for _, more in pieces), pair[i])


def test_blocks_computed_again_give_the_same_gradients(quantizer, student, batch):
    gradients = []
    for student.recompute in (False, True):
        student.zero_grad()
        Objective()(student, quantizer, batch)[0].backward()
        gradients.append([parameter.grad for parameter in student.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_blocks_that_fsdp_gathers_one_by_one_give_the_same_gradients(quantizer, student, teacher, batch):
    """AdaLN's weights are in the blocks, so a block makes its modulation in its own forward; it may run again."""
    objective = Objective(N, teacher=teacher, alpha=0.5)
    expected, _ = objective(student, quantizer, batch, 0.5)
    expected.backward()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        for recompute in (False, True):
            sharded, mesh = tiny_var(2, 1).requires_grad_(True), init_device_mesh("cpu", (1,))
            sharded.recompute = recompute
            for module in (*sharded.blocks, sharded):
                fully_shard(module, mesh=mesh)
            loss, _ = objective(sharded, quantizer, batch, 0.5)
            loss.backward()
            assert loss == expected
            for ours, theirs in zip(student.parameters(), sharded.parameters(), strict=True):
                torch.testing.assert_close(theirs.grad.full_tensor(), ours.grad)
    finally:
        dist.destroy_process_group()


def test_autocast_is_for_the_student_alone(quantizer, student, teacher, batch):
    """Inputs and target are those of float32."""
    inputs, targets = [], []

    def model(labels, inputs_BlD):
        inputs.append(inputs_BlD)
        return student(labels, inputs_BlD)

    def observed(labels, inputs_BlD):
        targets.append(teacher(labels, inputs_BlD))
        return targets[-1]

    objective = Objective(teacher=observed)
    exact, _ = objective(model, quantizer, batch)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = objective(model, quantizer, batch)
    assert torch.equal(*inputs) and torch.equal(*targets)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 1.5}, "alpha: expected 0 to 1, got 1.5"),
        ({"distill_cfg": 2.0}, "distill_cfg: expected a teacher to learn from, got none"),
        ({"cut": True}, "draft_steps: expected the scale after which to cut, got none"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Objective(**settings)


def test_negative_guidance_is_refused(teacher):
    with pytest.raises(InputError, match="distill_cfg: expected >= 0, got -1"):
        Objective(teacher=teacher, distill_cfg=-1)


def test_steps_that_leave_no_work_are_refused(quantizer, student, batch):
    with pytest.raises(InputError, match="draft_steps: expected 1 to 3"):
        Objective(4, cut=True)(student, quantizer, batch)
