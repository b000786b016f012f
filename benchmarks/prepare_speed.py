"""What the preparation of clips takes: this build against an earlier one, by one process and by two.

    python benchmarks/prepare_speed.py --clips 2000 --rounds 3 --against ../before [--audio FOLDER]

Whisper of base's size, with random weights, at its full window; clips of a folder, or made ones of 5 to 15 s. Each side
runs in processes of its own that begin together once their models are read; the sides take turns. The earlier build is
a checkout (`git worktree add ../before COMMIT`), whose processes take turns at a lock, as its runs do.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parents[1]
PROCESSES = (1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of all processes of a side together")
    parser.add_argument("--against", type=Path, help="a checkout of another build")
    parser.add_argument("--audio", type=Path, help="folder of wav and flac files, in place of made ones")
    arguments = parser.parse_args()
    sides = {"this": HERE, **({"other": arguments.against.resolve()} if arguments.against else {})}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clips = found(arguments.audio, arguments.clips) if arguments.audio else made(folder, arguments.clips)
        checkpoint = whisper_base(folder)
        took: dict[tuple[str, int], list[float]] = {}
        files: dict[tuple[str, int], int] = {}
        for turn in range(arguments.rounds):
            for processes in PROCESSES:
                for side, checkout in list(sides.items())[:: -1 if turn % 2 else 1]:
                    cache = folder / "cache"
                    job = {"clips": list(map(str, clips)), "checkpoint": checkpoint, "cache": str(cache)}
                    job["threads"] = max(1, arguments.threads // processes)
                    seconds = measured(checkout, job, processes)
                    took.setdefault((side, processes), []).append(seconds)
                    files[side, processes] = sum(path.is_file() for path in (cache / "features").rglob("*"))
                    shutil.rmtree(cache)
                    print(f"round {turn + 1}, {side} build, {processes} processes: {seconds:.1f} s", file=sys.stderr)
    machine = platform.processor() or platform.machine()
    setting = f"{len(clips)} clips, {arguments.rounds} rounds, {arguments.threads} threads"
    print(f"{setting}, {machine}, {time.strftime('%Y-%m-%d')}")
    print("| build | processes | median, s | of all rounds | clips a second | files |\n|---|---:|---:|---:|---:|---:|")
    for (side, processes), each in took.items():
        middle = statistics.median(each)
        span = f"{min(each):.1f}-{max(each):.1f}"
        row = side, processes, f"{middle:.1f}", span, f"{len(clips) / middle:.2f}", files[side, processes]
        print(f"| {' | '.join(map(str, row))} |")
    for processes in PROCESSES if "other" in sides else ():
        ratio = statistics.median(took["other", processes]) / statistics.median(took["this", processes])
        print(f"by {processes}: this build is {ratio:.2f} times as fast")


def found(folder: Path, count: int) -> list[Path]:
    """The first clips of a folder, in the order of their names."""
    clips = sorted(path for path in folder.rglob("*") if path.suffix in (".wav", ".flac"))[:count]
    if len(clips) < count:
        sys.exit(f"{folder}: {len(clips)} wav and flac files, fewer than --clips {count}")
    return clips


def made(folder: Path, count: int) -> list[Path]:
    """Noise of 5 to 15 s at 22,050 Hz, so that it is resampled, in FLAC."""
    import soundfile

    draw, clips = np.random.default_rng(1), [folder / f"{number}.flac" for number in range(count)]
    for clip in clips:
        soundfile.write(clip, 0.1 * draw.standard_normal(int(draw.uniform(5, 15) * 22_050)), 22_050)
    return clips


def whisper_base(folder: Path) -> str:
    """A checkpoint of Whisper base's size with random weights, in openai-whisper's form."""
    import torch
    from whisper.model import AudioEncoder

    torch.manual_seed(0)
    dims = {"n_mels": 80, "n_audio_ctx": 1500, "n_audio_state": 512, "n_audio_head": 8, "n_audio_layer": 6}
    weights = {f"encoder.{name}": value for name, value in AudioEncoder(*dims.values()).state_dict().items()}
    torch.save({"dims": dims, "model_state_dict": weights}, folder / "base.pt")
    return str(folder / "base.pt")


def measured(checkout: Path, job: dict[str, Any], processes: int) -> float:
    """Seconds from the start of all processes to the end of the last, models read before."""
    place = os.pathsep.join(map(str, (checkout / "src", checkout)))
    environment = {**os.environ, "PYTHONPATH": place, "OMP_NUM_THREADS": str(job["threads"])}
    file = Path(job["cache"]).with_name("job.json")
    file.write_text(json.dumps({**job, "team": processes}), "utf-8")
    command = [sys.executable, str(Path(__file__).resolve()), "--work", str(file)]
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True)
        for _ in range(processes)
    ]
    for process in running:
        assert process.stdout is not None and process.stdout.readline() == f"{checkout}\n", "another build was read"
    start = time.perf_counter()
    for process in running:  # all at once: `communicate` waits for the end
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in running:
        process.communicate()
    assert not any(process.returncode for process in running), "a process failed, see above"
    return time.perf_counter() - start


def work(file: str) -> None:
    """Be one of the processes of a side."""
    import torch

    import sottovoce
    from sottovoce.encoders.whisper import WhisperEncoder
    from sottovoce.io import file_lock
    from sottovoce.progress import Progress
    from sottovoce.training.audio_reader import AudioReader

    job = json.loads(Path(file).read_text("utf-8"))
    torch.set_num_threads(job["threads"])
    encoder = WhisperEncoder(checkpoint=job["checkpoint"])
    encoder.load()
    reader, clips = AudioReader(encoder, Path(job["cache"]), 60.0), list(map(Path, job["clips"]))
    os.environ["WORLD_SIZE"] = str(job["team"])
    checkout = Path(sottovoce.__file__).parents[2]
    shared = (checkout / "src/sottovoce/training/preparation.py").is_file()
    print(checkout, flush=True)
    sys.stdin.readline()
    with nullcontext() if shared else file_lock(Path(job["cache"])), Progress(bars=False) as progress:
        faults = reader.prepare(encoder, clips, progress)
    if faults:
        sys.exit(str(faults[0]))


if __name__ == "__main__":
    work(sys.argv[2]) if sys.argv[1:2] == ["--work"] else main()
