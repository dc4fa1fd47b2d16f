"""CoMMIT in every set-up that people fine-tune with. A new one is a line in `SETUPS`."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import reference
import torch
import torch.distributed as dist
import transformers
from accelerate.utils.deepspeed import DummyOptim
from loops import Task, collate, trainer_arguments, values
from packaging.version import Version
from small_experiment import make_experiment, run
from tiny import build, make_batch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from transformers.integrations.peft import MIN_PEFT_VERSION

from commit_tuning import CoMMITConfig, Coordinator, ModulePartition, UserError, partition_model
from commit_tuning.config import Probe
from commit_tuning.errors import ShardingError
from commit_tuning.health.inspection import inspect_model

F64 = torch.float64
EVERY_STEP = CoMMITConfig(probe=Probe(interval=1, samples=None), lr_update_interval=2)
PLACES = {
    "tower": r"vision_tower|vision_model|qformer|query_tokens",
    "projector": r"multi_modal_projector|language_projection",
    "llm": r"language_model|lm_head",
}
QUERY_AND_VALUE = r"(q_proj|v_proj|qkv|attention\.query|attention\.value)"
OF_LLM = rf".*language_model.*{QUERY_AND_VALUE}"
ENCODER = ["vision_tower", "multi_modal_projector", "vision_model", "qformer", "language_projection"]


def place(name: str) -> str:
    """Where a parameter is, and whether it is an adapter's."""
    found = next(place for place, pattern in PLACES.items() if re.search(pattern, name))
    return f"{found} adapter" if "lora_" in name else found


def lora(model: nn.Module, target_modules: str = OF_LLM, by_hand: tuple[str, ...] = (), **options: Any) -> nn.Module:
    """LoRA, and `requires_grad` by hand on the parameters of some places."""
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=target_modules, **options))
    for name, parameter in model.named_parameters():
        if place(name) in by_hand:
            parameter.requires_grad_(True)
    return model


def without_peft_model(model: nn.Module) -> nn.Module:
    """LoRA as transformers adds it by itself."""
    encoder = [parameter for name, parameter in model.named_parameters() if place(name) in BOTH]
    if Version(peft.__version__) < Version(MIN_PEFT_VERSION):
        pytest.skip(f"transformers {transformers.__version__} adds LoRA with PEFT {MIN_PEFT_VERSION} or newer")
    model.add_adapter(peft.LoraConfig(r=2, target_modules=OF_LLM))
    for parameter in encoder:
        parameter.requires_grad_(True)
    return model


def frozen_tower(model: nn.Module) -> nn.Module:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(place(name) != "tower")
    return model


Setup = tuple[Callable[[nn.Module], nn.Module], set[str], set[str]]  # and what is trained of the LLM, of the encoder
BOTH = ("tower", "projector")
SETUPS: dict[str, Setup] = {
    "all in full": (lambda m: m, {"llm"}, {*BOTH}),
    "frozen tower": (frozen_tower, {"llm"}, {"projector"}),
    "LoRA, encoder by hand": (lambda m: lora(m, by_hand=BOTH), {"llm adapter"}, {*BOTH}),
    "LoRA for causal models": (lambda m: lora(m, by_hand=BOTH, task_type="CAUSAL_LM"), {"llm adapter"}, {*BOTH}),
    "LoRA, encoder saved": (lambda m: lora(m, modules_to_save=ENCODER), {"llm adapter"}, {*BOTH}),
    "LoRA, projector saved": (lambda m: lora(m, modules_to_save=[ENCODER[1], ENCODER[4]]), {"llm adapter"}, {BOTH[1]}),
    "LoRA, head and embeddings saved": (
        lambda m: lora(m, by_hand=BOTH, modules_to_save=["lm_head", "embed_tokens"]), {"llm", "llm adapter"}, {*BOTH}
    ),
    "LoRA of transformers": (without_peft_model, {"llm adapter"}, {*BOTH}),
    "DoRA": (lambda m: lora(m, by_hand=BOTH, use_dora=True), {"llm adapter"}, {*BOTH}),
    "LoRA on both": (lambda m: lora(m, f".*{QUERY_AND_VALUE}"), {"llm adapter"}, {"tower adapter"}),
    "LoRA on every layer": (
        lambda m: lora(m, "all-linear"), {"llm adapter"}, {"tower adapter", "projector adapter"}
    ),
}  # fmt: skip


def set_up(setup: str, kind: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, ModulePartition]:
    model, _ = build(kind, dtype)
    model = SETUPS[setup][0](model).train()
    return model, partition_model(model)


def names_of(partition: ModulePartition) -> dict[str, list[str]]:
    return {module: list(partition.named_parameters(module)) for module in partition}


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("kind", ["llava", "blip2"], indirect=True)
def test_a_setup_is_taken_apart_measured_and_trained(setup: str, kind: str) -> None:
    model, partition = set_up(setup, kind, F64)
    _, of_llm, of_encoder = SETUPS[setup]
    found = {module: set(map(place, names)) for module, names in names_of(partition).items()}
    assert found == {"language_model": of_llm, "vision": of_encoder}
    partition.check(model)
    optimizer = torch.optim.AdamW(partition.param_groups(lr=1e-2, weight_decay=0.0))
    coordinator = Coordinator(model, optimizer, EVERY_STEP, partition)
    for step in range(2):
        batch = make_batch(kind, 4, F64, seed=step)
        model(**batch).loss.backward()
        before = copy.deepcopy(model)
        coordinator.step(batch)
        optimizer.zero_grad()
        drifts = reference.module_drifts(before, model, names_of(partition), batch)
        assert coordinator.drift == pytest.approx(drifts, rel=1e-3)
        assert coordinator.kappa == pytest.approx(drifts["language_model"] / drifts["vision"], rel=1e-3)
        assert all(drift > 0 for drift in drifts.values())
    assert coordinator.learning_rates["vision"] != coordinator.learning_rates["language_model"]


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("kind", ["llava", "blip2"], indirect=True)
def test_inspection_of_a_setup_finds_what_is_there(setup: str, kind: str) -> None:
    """Nothing wrong but the last layer of a LLaVA's tower, and a note where adapters sit on a frozen encoder."""
    model, partition = set_up(setup, kind)
    of_encoder = SETUPS[setup][2]
    found = inspect_model(model, make_batch(kind, 2, torch.float32), torch.optim.SGD(partition.param_groups(lr=0.1)))
    beyond = kind == "llava" and any("tower" in name for name in of_encoder)
    assert [re.sub(r"[\d,]+ (.*?) \(.*", r"\1", fault) for fault in found.faults] == [
        "vision: trainable parameters unreachable: no gradient can arrive"
    ] * beyond
    noted = {note.partition(":")[0] for note in found.notes}
    modules = {"tower": "vision", "projector": "projector"}
    assert noted == {modules[name.removesuffix(" adapter")] for name in of_encoder if "adapter" in name}


class WithoutForwardMode(torch.autograd.Function):
    """A product as quantised kernels have it: a backward pass, and no forward-mode derivative."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return inputs @ weight.T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.saved_tensors[0], None


class EightBit(nn.Linear):
    """Stands in for a quantised layer."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False)
        self.scale = layer.weight.detach().abs().max() / 127
        self.weight = nn.Parameter((layer.weight / self.scale).round().to(torch.int8), requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return WithoutForwardMode.apply(inputs, self.weight.to(inputs.dtype) * self.scale)


def four_bit(layer: nn.Linear) -> nn.Module:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    quantised = bitsandbytes.nn.Linear4bit(layer.in_features, layer.out_features, bias=False, quant_type="nf4")
    quantised.load_state_dict(layer.state_dict())
    return quantised.to("cpu")  # which quantises


@pytest.mark.parametrize("rate", [1e-2, 1e-5])
@pytest.mark.parametrize("quantise", [EightBit, four_bit])
def test_lora_on_a_quantised_language_model(quantise: Callable[[nn.Linear], nn.Module], rate: float) -> None:
    model, _ = build("llava")
    for layer in model.get_decoder().layers:
        for name in ("q_proj", "v_proj"):
            setattr(layer.self_attn, name, quantise(getattr(layer.self_attn, name)))
    model.is_loaded_in_4bit = quantise is four_bit
    model = lora(model, by_hand=("projector",))
    partition = partition_model(model)
    config = CoMMITConfig(method="constant", probe=Probe(interval=1, samples=None))
    coordinator = Coordinator(model, torch.optim.AdamW(partition.param_groups(lr=rate)), config, partition)
    batch = make_batch("llava", 4, torch.float32)
    model(**batch).loss.backward()
    before = copy.deepcopy(model)
    coordinator.step(batch)
    exact = [copy.deepcopy(part).double() for part in (before, model)]
    exact_batch = {**batch, "pixel_values": batch["pixel_values"].double()}
    assert {place(name) for name in partition.named_parameters("language_model")} == {"llm adapter"}
    drifts = reference.module_drifts(*exact, names_of(partition), exact_batch)
    assert coordinator.drift == pytest.approx(drifts, rel=0.05)


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(values(first), values(second), strict=True))


def trainer(folder: Path, model: nn.Module, method: str = "commit-clr", cls: Any = None, **changes: Any) -> Any:
    from transformers import TrainingArguments

    from commit_tuning.integrations.transformers import CoMMITTrainer

    arguments = TrainingArguments(**trainer_arguments(task := Task(folder), **{"max_steps": 3, **changes}))
    commit = (
        {"commit": CoMMITConfig(method=method, probe=Probe(interval=1), lr_update_interval=2)} if cls is None else {}
    )
    return (cls or CoMMITTrainer)(
        model=model, args=arguments, train_dataset=task.samples(), data_collator=collate, **commit
    )  # fmt: skip


@pytest.mark.parametrize("setup", ["LoRA, encoder saved", "LoRA on both"])
def test_an_adapter_in_the_trainer_and_its_resume(setup: str, tmp_path: Path) -> None:
    whole = trainer(tmp_path, set_up(setup, "llava")[0], save_strategy="steps", save_steps=2)
    whole.train()
    resumed = trainer(tmp_path, set_up(setup, "llava")[0])
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert same(whole.model, resumed.model)
    assert whole.coordinator.summary() == resumed.coordinator.summary()
    assert min(whole.coordinator.drift.values()) > 0


def test_weights_missing_from_adapter_checkpoints_are_named(tmp_path: Path) -> None:
    """Otherwise the encoder would go on, unnoticed, from the weights it had before the training."""
    setup = "LoRA, encoder by hand"
    with pytest.warns(UserWarning, match=r"trained tensors are outside the adapter, and PEFT saves none of them"):
        trainer(tmp_path, set_up(setup, "llava")[0], save_strategy="steps", save_steps=2).train()
    with pytest.raises(UserError, match=r"cannot resume from this checkpoint: .*modules_to_save"):
        trainer(tmp_path, set_up(setup, "llava")[0]).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.mark.skipif(not dist.is_gloo_available(), reason="gloo is not in this build of torch")
@pytest.mark.filterwarnings("ignore:FSDP is switching to use .NO_SHARD.:UserWarning")  # with one rank
@pytest.mark.parametrize("keeps_names", [False, True])
def test_fsdp1_is_refused(keeps_names: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        each = trainer(tmp_path, build("llava")[0])
        wrapped = FullyShardedDataParallel(each.model, use_orig_params=keeps_names, device_id=torch.device("cpu"))
        with pytest.raises(ShardingError, match=r"FSDP1, .*use DDP or FSDP2") as refused:
            Coordinator(wrapped, torch.optim.AdamW(wrapped.parameters()), EVERY_STEP)
        with pytest.raises(ShardingError, match="FSDP1"):
            each.create_optimizer(wrapped)
    finally:
        dist.destroy_process_group()
    assert "\n" not in str(refused.value)


def test_optimizer_made_by_deepspeed_is_refused(tmp_path: Path) -> None:
    """What Accelerate hands out where DeepSpeed's own configuration names the optimizer."""
    each = trainer(tmp_path, build("llava")[0])
    each.optimizer = DummyOptim(each.model.parameters())
    with pytest.raises(ShardingError, match="DeepSpeed"):
        Coordinator(each.model, each.optimizer, EVERY_STEP)
    with pytest.raises(ShardingError, match="DeepSpeed"):
        each.create_optimizer()


def language_model() -> nn.Module:
    return build("llava")[0].model.language_model


def without_encoder() -> nn.Module:
    return lora(build("llava")[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (language_model, "has no image, video or audio encoder"),
        (without_encoder, "'vision' has no trainable parameter"),
    ],
)
def test_trainer_refuses_a_model_without_trainable_encoder(
    make: Callable[[], nn.Module], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as refused:
        trainer(tmp_path, make()).create_optimizer()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("width", ["80", "120"])
@pytest.mark.parametrize(
    ("settings", "code", "vision", "verdict"),
    [
        ([], 1, ["23.7k", "0", "8,608", "0", "0", "0.0001", "0"], "cannot learn: vision: 8,608"),
        (["model.freeze=['*vision_tower*']"], 0, ["0", "23.7k", "0", "0", "0"], "everything that is trainable"),
    ],
)
def test_inspecting_a_recipe(
    settings: list[str], code: int, vision: list[str], verdict: str, width: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", width)
    recipe = make_experiment(tmp_path)
    assert run(["inspect", recipe, *settings, "train.learning_rate=1e-4"]) == code
    out = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}
    assert rows["vision"] == vision
    assert rows["projector"] == ["2,112", "0", "0", "0", "0", "0.0001", "0"]
    assert rows["language_model"] == ["2,176", "24.7k", "0", "0", "0", "0.0001", "0"]
    assert verdict in out
