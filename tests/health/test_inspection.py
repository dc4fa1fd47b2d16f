"""What `inspect` says of models that learn, and of models of which something cannot."""

import json

import peft
import pytest
import torch
import transformers
from small_experiment import make_experiment, run, tokenizer_of
from tiny import build, make_batch

from commit_tuning.cli.app import main
from commit_tuning.errors import BatchError, PartitionError
from commit_tuning.health.inspection import inspect_model
from commit_tuning.train.inspect_target import inspect_target

LAST_LAYER = "model.vision_tower.encoder.layers.2"


@pytest.fixture
def batch():
    return make_batch("llava", 2, torch.float32)


def by_name(inspection):
    return {module.name: module for module in inspection.modules}


def test_last_layer_of_llava_tower_is_unreachable(batch):
    model, partition = build("llava")
    optimizer = torch.optim.AdamW(partition.param_groups(lr=1e-4, weight_decay=0.1))
    before = [p.detach().clone() for p in model.parameters()]
    found = inspect_model(model, batch, optimizer)
    vision = by_name(found)["vision"]
    beyond = [p for n, p in model.named_parameters() if n.startswith((LAST_LAYER, "model.vision_tower.post_layernorm"))]
    assert vision.unreachable == sum(p.numel() for p in beyond)
    assert vision.learning_rates == (1e-4,)
    assert vision.weight_decays == (0.0, 0.1)
    assert by_name(found)["projector"].unreachable == 0
    assert "no gradient can arrive" in found.faults[0]
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert model.training


def test_what_is_frozen_there_is_no_fault(batch):
    model, _ = build("llava")
    for name, parameter in model.named_parameters():
        if name.startswith((LAST_LAYER, "model.vision_tower.post_layernorm")):
            parameter.requires_grad_(False)
    found = inspect_model(model, batch)
    assert found.faults == []
    assert by_name(found)["vision"].frozen > 0


def test_untrained_lora_counts_as_reachable(batch):
    model, _ = build("llava")
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=r".*(layers\.0).*(q_proj|v_proj)"))
    found = inspect_model(model, batch)
    vision = by_name(found)["vision"]
    assert vision.adapters == vision.trainable > 0
    assert vision.unreachable == vision.zero_gradient == 0
    assert any(note.startswith("vision") for note in found.notes)


def test_missing_group_zero_rate_frozen_encoder_are_faults(batch):
    model, partition = build("llava")
    optimizer = torch.optim.SGD(partition["language_model"], lr=0.0)
    faults = " ".join(inspect_model(model, None, optimizer).faults)
    assert "vision" in faults
    assert "in no group of the optimizer" in faults
    assert "language_model: a learning rate of zero" in faults
    for module in partition.encoders:
        for parameter in partition[module]:
            parameter.requires_grad_(False)
    assert "nothing of any encoder is trainable" in inspect_model(model).faults


def test_model_without_trainable_parameters_is_a_fault(batch):
    model, _ = build("llava")
    found = inspect_model(model.requires_grad_(False), batch)
    assert found.faults == ["nothing of the language model is trainable", "nothing of any encoder is trainable"]


def test_inspect_command_prints_and_fails_on_unreachable_parameters(tmp_path, capsys):
    recipe = make_experiment(tmp_path)
    assert run(["inspect", recipe, "model.freeze=['*vision_tower*']"]) == 0
    assert "everything that is trainable can learn" in capsys.readouterr().out
    assert run(["inspect", tmp_path / "model", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert next(m for m in found["modules"] if m["name"] == "vision")["unreachable"] > 0


def test_inspect_refuses_neither_recipe_nor_model(capsys):
    with pytest.raises(SystemExit) as exited:
        main(["inspect", "./no/such/folder"])
    assert exited.value.code == 2
    assert "is not there: give a folder, or a name of the hub" in capsys.readouterr().err


@pytest.mark.parametrize("model", [torch.nn.Linear(2, 2), build("llava")[0].get_decoder()])
def test_what_is_no_multimodal_model_is_refused(model):
    with pytest.raises(PartitionError, match=r"is not a transformers model|has no image, video or audio encoder"):
        inspect_model(model)


def test_a_batch_without_labels_is_refused(batch):
    model, _ = build("llava")
    del batch["labels"]
    with pytest.raises(BatchError, match="no 'labels' tensor"):
        inspect_model(model, batch)


def test_inspect_refuses_the_folder_of_a_text_model(tmp_path, capsys):
    transformers.LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(SystemExit):
        main(["inspect", str(tmp_path)])
    assert "(llama) has no image, video or audio encoder" in capsys.readouterr().err


def test_inspect_shows_silence_to_an_audio_model(tmp_path):
    tokenizer = tokenizer_of()
    tokenizer.add_tokens(["<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"])
    sizes = {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 16, "num_hidden_layers": 1}
    config = transformers.Qwen2AudioConfig(
        audio_config={"model_type": "qwen2_audio_encoder", "d_model": 16, "encoder_layers": 1, "num_mel_bins": 8,
                      "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "max_source_positions": 100},
        text_config={"model_type": "qwen2", "vocab_size": len(tokenizer), "hidden_size": 16, **sizes},
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )  # fmt: skip
    transformers.Qwen2AudioForConditionalGeneration(config).save_pretrained(tmp_path)
    hears = transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=2)
    transformers.Qwen2AudioProcessor(hears, tokenizer).save_pretrained(tmp_path)
    found = by_name(inspect_target(str(tmp_path), []))
    assert found["audio"].trainable > 0
    assert found["audio"].unreachable == found["audio"].zero_gradient == 0
