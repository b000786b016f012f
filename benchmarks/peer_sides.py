"""The peers' sides of peer_step.py, each in its own environment: their model classes, processors and trainers.

    python benchmarks/peer_sides.py ultravox|west SPEC

Nothing here imports Sottovoce. SPEC is what peer_step.py writes.
"""

import importlib.machinery
import json
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import soundfile
import torch
import transformers
from peer_gate import wait


class Turns(transformers.TrainerCallback):
    """`wait` after each step of the trainer of transformers."""

    def on_step_end(self, *_: Any, **__: Any) -> None:
        wait()


class Rows(torch.utils.data.Dataset):
    """Lines of a manifest, made ready by `ready` when they are drawn."""

    def __init__(self, manifest: str, ready: Any) -> None:
        self.lines = [json.loads(line) for line in Path(manifest).read_text("utf-8").splitlines()]
        self.ready = ready

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, number: int) -> Any:
        return self.ready(self.lines[number])


def ultravox(spec: dict[str, Any]) -> None:
    """Ultravox's model, processor, collator and trainer; the loss is cross-entropy, or KL from the text's reading."""
    sys.path.insert(0, spec["ultravox"])
    config, model_of, processing = (
        import_module(f"ultravox.model.ultravox_{n}") for n in ("config", "model", "processing")
    )
    trainer_of = import_module("ultravox.training.trainer").UltraTrainer
    folder = Path(spec["folder"]) / f"whisper-{spec['side']}"  # it knows a Whisper by its name
    folder.mkdir()
    extractor = transformers.WhisperFeatureExtractor()
    (folder / "vocab.json").write_text('{"<|endoftext|>": 0}')
    (folder / "merges.txt").write_text("#version: 0.2\n")
    ears = transformers.WhisperTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    sizes = {"d_model": 512, "encoder_layers": 6, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048}
    decoder = {"decoder_layers": 1, "decoder_attention_heads": 8, "decoder_ffn_dim": 2048}
    transformers.WhisperModel(transformers.WhisperConfig(**sizes, **decoder)).save_pretrained(folder)
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(spec["llm"], padding_side="right")
    tokenizer.pad_token = tokenizer.eos_token
    processor = processing.UltravoxProcessor(transformers.WhisperProcessor(extractor, ears), tokenizer, stack_factor=8)
    sizes_of_all = config.UltravoxConfig(
        audio_model_id=str(folder), text_model_id=spec["llm"], stack_factor=8, hidden_size=2048, projector_ln_mid=True,
        torch_dtype=getattr(torch, spec["dtype"]),
    )  # fmt: skip
    model = model_of.UltravoxModel(sizes_of_all)
    distils = spec["side"] == "ultravox_kl"
    loss = config.LossFunction.KL_Divergence if distils else config.LossFunction.CrossEntropy
    model.set_loss_config(config.LossConfig(loss))

    def ready(line: dict[str, Any]) -> dict[str, Any]:
        samples, rate = soundfile.read(line["audio"], dtype="float32")
        user = {"role": "user", "content": f"{spec['prompt']} <|audio|>"}
        chat = [user, {"role": "assistant", "content": line["text"]}]
        whole = tokenizer.apply_chat_template(chat, tokenize=False)
        asked = tokenizer.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True)
        row = dict(processor(text=whole, audios=samples[None], sampling_rate=rate, return_tensors="pt"))
        row["input_ids"], row["attention_mask"] = row["input_ids"][0], row["attention_mask"][0]
        answer = len(tokenizer(whole[len(asked) :], add_special_tokens=False).input_ids)
        row["labels"] = [-100] * (len(row["input_ids"]) - answer) + row["input_ids"][-answer:].tolist()
        if distils:
            text = processor(text=whole.replace("<|audio|>", line["text"]), return_tensors="pt")
            ids = text["input_ids"][0]
            row |= {"alt_input_ids": ids, "alt_attention_mask": text["attention_mask"][0]}
            row["alt_labels"] = [-100] * (len(ids) - answer) + ids[-answer:].tolist()
        return row

    collator = processing.DataCollatorForSeq2SeqWithAudio(tokenizer=tokenizer, include_alt_fields=distils)
    settings = training(transformers.Seq2SeqTrainingArguments, spec, optim="adamw_torch")
    trainer = trainer_of(
        model=model, args=settings, train_dataset=Rows(spec["manifest"], ready), data_collator=collator,
        callbacks=[Turns()],
    )  # fmt: skip
    trainer.train()


def west(spec: dict[str, Any]) -> None:
    """WEST's model and rows: windows of 30 s, and texts padded to one length."""
    sys.path.insert(0, spec["west"])
    if not importlib.machinery.PathFinder.find_spec("torchaudio"):
        sys.modules["torchaudio"] = reader = ModuleType("torchaudio")  # which its rows alone use, to read a clip

        def load(file: str) -> tuple[torch.Tensor, int]:
            samples, rate = soundfile.read(file, dtype="float32")
            return torch.from_numpy(samples)[None], rate

        reader.load = load  # type: ignore[attr-defined]
    transformers.deepspeed = None  # which it imports and does not use, and transformers 4.51 has no more
    train = import_module("train")

    parts = train.ModelArguments(llm_model_name_or_path=spec["llm"], whisper_model_name_or_path=spec["whisper"])
    model = train.init_model(parts)
    model.freeze_llm()
    model.freeze_encoder()
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(spec["llm"], padding_side="right")
    tokenizer.pad_token = tokenizer.eos_token
    rows = train.SpeechDataset(spec["west_manifest"], tokenizer=tokenizer, max_len=512)  # as its own data shall
    if spec["dtype"] == "float32":
        model.float()
    settings = training(train.TrainingArguments, spec, bf16=spec["dtype"] == "bfloat16")  # its own autocast is CUDA's

    def collate(batch: list[dict[str, Any]]) -> dict[str, Any]:
        together = transformers.default_data_collator(batch)
        return {**together, "labels": together["labels"].long()}  # cross-entropy on a CPU takes no int32

    transformers.Trainer(
        model=model, args=settings, train_dataset=rows, data_collator=collate, callbacks=[Turns()]
    ).train()


def training(kind: Any, spec: dict[str, Any], **others: Any) -> Any:
    """Settings that all trainers of transformers have here."""
    return kind(
        output_dir=f"{spec['folder']}/{spec['side']}", per_device_train_batch_size=spec["batch"], num_train_epochs=1,
        learning_rate=1e-3, save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True, logging_steps=10_000,
        remove_unused_columns=False, seed=0, dataloader_num_workers=0, **others,
    )  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    SPEC = json.loads(Path(sys.argv[2]).read_text("utf-8"))
    (west if sys.argv[1] == "west" else ultravox)({**SPEC, "side": sys.argv[1]})
