import pytest
import torch
from families.catalogue import build_model as build_family
from tiny import build, plain_partition, tiny_blip2, tiny_llava
from torch import nn

from commit_tuning import ModulePartition, partition_model
from commit_tuning.control.base_rates import base_rates
from commit_tuning.errors import PartitionError
from commit_tuning.partition.discover import unwrap


def two_layers():
    return nn.Linear(2, 3), nn.Linear(3, 4)


def test_a_parameter_in_two_modules_is_named():
    tower, head = two_layers()
    with pytest.raises(PartitionError, match=r"'weight' \(3, 2\) is in two modules, 'vision' and 'language_model'"):
        ModulePartition(
            {"vision": tower.named_parameters(), "language_model": [*head.named_parameters(), ("weight", tower.weight)]}
        )


def test_a_parameter_in_no_module_is_named():
    model = nn.ModuleDict({"tower": nn.Linear(2, 3), "head": nn.Linear(3, 4), "extra": nn.Linear(1, 1)})
    partition = ModulePartition({"vision": model["tower"].parameters(), "language_model": model["head"].parameters()})
    with pytest.raises(PartitionError, match=r"'extra.weight' \(and 1 more\)"):
        partition.check(model)
    model["extra"].requires_grad_(False)
    partition.check(model)


@pytest.mark.parametrize(
    ("modules", "hint"),
    [
        ({"vision": two_layers()[0].parameters(), "text": two_layers()[1].parameters()}, "'language_model'"),
        ({"language_model": two_layers()[0].parameters()}, "at least one feature encoder"),
        ({"vision": [], "language_model": two_layers()[0].parameters()}, "'vision' has no trainable parameter"),
        (
            {
                "vision": two_layers()[0].parameters(),
                "language_model": nn.Linear(1, 1).requires_grad_(False).parameters(),
            },
            "'language_model' has no trainable parameter",
        ),
    ],
)
def test_incomplete_partitions(modules, hint):
    with pytest.raises(PartitionError, match=hint):
        ModulePartition(modules)


def test_groups_have_module_rates_and_no_vector_decay():
    model, partition = build("plain")
    groups = partition.param_groups(lr={"language_model": 1e-4, "vision": 1e-3}, weight_decay=0.1)
    assert sum(p.numel() for g in groups for p in g["params"]) == sum(p.numel() for p in model.parameters())
    for group in groups:
        assert group["lr"] == {"language_model": 1e-4, "vision": 1e-3}[group["module"]]
        assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] > 0}
    with pytest.raises(PartitionError, match="'visoin'"):
        partition.param_groups(lr={"language_model": 1e-4, "visoin": 1e-3})


@pytest.mark.parametrize("make", [tiny_llava, tiny_blip2])
def test_transformers_model_splits_into_language_model_and_vision(make):
    model = make()
    partition = partition_model(model)
    assert partition.names == ("language_model", "vision")
    named = dict(model.named_parameters())
    language = set(partition.named_parameters("language_model"))
    assert all("language_model" in name or "lm_head" in name for name in language)
    assert set(partition.named_parameters("vision")) == set(named) - language
    assert any("project" in name for name in partition.named_parameters("vision"))


@pytest.mark.parametrize("make", [tiny_llava, tiny_blip2])
def test_partition_with_language_lora_and_frozen_tower(make):
    from peft import LoraConfig, get_peft_model

    model = make()
    vision = list(partition_model(model).named_parameters("vision"))
    model = get_peft_model(model, LoraConfig(r=2, target_modules=r".*language_model.*(q_proj|v_proj)"))
    for name, parameter in model.named_parameters():
        if any(name.endswith(n) for n in vision) and "tower" not in name and "vision_model" not in name:
            parameter.requires_grad_(True)
    partition = partition_model(model)
    assert all("lora" in name for name in partition.named_parameters("language_model"))
    assert all("tower" not in name for name in partition.named_parameters("vision"))
    partition.check(model)


PROJECTORS = {tiny_llava: "multi_modal_projector", tiny_blip2: "language_projection"}


@pytest.mark.parametrize("make", [tiny_llava, tiny_blip2])
def test_the_projector_goes_where_it_is_told(make):
    model = make()
    projector = {name for name, _ in model.named_parameters() if PROJECTORS[make] in name}
    everywhere = {place: partition_model(model, projector=place) for place in ("encoder", "language_model", "own")}
    encoder, language, own = ({m: set(p.named_parameters(m)) for m in p} for p in everywhere.values())
    assert projector
    assert own == {
        "language_model": encoder["language_model"], "vision": encoder["vision"] - projector, "projector": projector
    }  # fmt: skip
    assert language == {"language_model": encoder["language_model"] | projector, "vision": own["vision"]}
    assert everywhere["own"].encoders == ("vision", "projector")


def test_query_tokens_and_qformer_are_no_projector():
    names = partition_model(tiny_blip2(), projector="own").named_parameters("vision")
    assert "query_tokens" in names
    assert any(name.startswith("qformer.") for name in names)


def test_a_projector_that_cannot_be_placed():
    model = tiny_llava()
    with pytest.raises(PartitionError, match=r"projector='llm' is not one of encoder, language_model, own"):
        partition_model(model, projector="llm")
    model.model.multi_modal_projector.requires_grad_(False)
    with pytest.raises(PartitionError, match="'projector' has no trainable parameter"):
        partition_model(model, projector="own")
    model.model.multi_modal_projector = nn.Identity()
    with pytest.raises(PartitionError, match="no projector that stands by itself"):
        partition_model(model, projector="language_model")


def test_a_compiled_model_is_looked_into():
    model = tiny_llava()
    assert unwrap(torch.compile(model, backend="eager")) is model
    assert partition_model(torch.compile(model, backend="eager")).names == ("language_model", "vision")


def test_what_is_not_multimodal_is_refused():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    with pytest.raises(PartitionError, match="has no image, video or audio encoder"):
        partition_model(LlamaForCausalLM(config))
    with pytest.raises(PartitionError, match="not a transformers model"):
        partition_model(nn.Linear(1, 1))


def test_a_frozen_encoder_is_refused():
    model, _ = build("llava")
    model.model.vision_tower.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(False)
    with pytest.raises(PartitionError, match="'vision' has no trainable parameter"):
        partition_model(model)


def test_language_only_lora_is_refused_with_a_remedy():
    from peft import LoraConfig, get_peft_model

    only_text = LoraConfig(r=2, target_modules=r".*language_model.*q_proj")
    with pytest.raises(PartitionError, match=r"'vision' has no trainable parameter.*modules_to_save"):
        partition_model(get_peft_model(tiny_llava(), only_text))
    saved = LoraConfig(r=2, target_modules=r".*language_model.*q_proj", modules_to_save=["multi_modal_projector"])
    assert partition_model(get_peft_model(tiny_llava(), saved)).encoders == ("vision",)


def test_frozen_encoder_beside_trained_one_is_omitted():
    model = build_family("Qwen2_5OmniThinkerForConditionalGeneration")
    assert partition_model(model).encoders == ("vision", "audio")
    model.get_encoder("audio").requires_grad_(False)
    assert partition_model(model).encoders == ("vision",)
    model.get_encoder("image").requires_grad_(False)
    with pytest.raises(PartitionError, match="nothing to balance"):
        partition_model(model)


def test_the_merger_of_a_tower_is_its_projector():
    model = build_family("Qwen2VLForConditionalGeneration")
    own = partition_model(model, projector="own").named_parameters("projector")
    assert set(own) == {name for name, _ in model.named_parameters() if "visual.merger." in name} != set()
    chosen = base_rates(model, partition_model(model), {"merger_lr": 1e-3, "vit_lr": 1e-5})
    assert {chosen[id(parameter)] for parameter in own.values()} == {1e-3}
    assert {*chosen.values()} == {1e-3, 1e-5}


def test_soft_prompts_beside_the_model_are_refused():
    from peft import PromptTuningConfig, get_peft_model

    sizes = {"token_dim": 16, "num_layers": 1, "num_attention_heads": 1}
    model = get_peft_model(tiny_llava(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2, **sizes))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad or "projector" in name)
    with pytest.raises(PartitionError, match=r"'prompt_encoder.* lies beside the LlavaForConditionalGeneration"):
        partition_model(model)


def test_tied_weights_count_once():
    tower, embed = nn.Linear(2, 3), nn.Embedding(4, 2)
    partition = ModulePartition({"vision": tower.parameters(), "language_model": [embed.weight, embed.weight]})
    assert len(partition["language_model"]) == 1
    assert repr(partition) == "ModulePartition(vision=9, language_model=8)"


def test_the_import_is_light():
    import subprocess
    import sys

    code = "import sys, commit_tuning; print(sorted(m for m in sys.modules if '.' not in m))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "transformers" not in found
    assert "peft" not in found


def test_plain_partition_is_complete():
    model, partition = build("plain")
    plain_partition(model).check(model)
    assert torch.equal(partition["vision"][0], model.encoder[0].weight)
