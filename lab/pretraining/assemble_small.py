"""Put a small model together of pretrained parts: ``python lab/pretraining/assemble_small.py small-llava``.

Each part is a folder, as ``save_pretrained`` writes it, or a hub name. What is written is a folder that recipes can
name; the shipped ``recipes/small-*.yaml`` name the default one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from commit_lab.small.models import PARTS, SMALL_FOLDER, SMALL_MODELS, assemble_small
from commit_tuning.errors import UserError


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=SMALL_MODELS)
    parser.add_argument("--vision", default=PARTS["vision"], help="a DINOv2 (default: %(default)s)")
    parser.add_argument("--audio", default=PARTS["audio"], help="a Whisper (default: %(default)s)")
    parser.add_argument("--language", default=PARTS["language"], help="a language model (default: %(default)s)")
    parser.add_argument("--output", type=Path, help=f"the folder (default: {SMALL_FOLDER}/NAME)")
    parser.add_argument("--seed", type=int, default=0, help="of what is fresh (default: %(default)s)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Assemble, then write model and processor."""
    options = parse(arguments)
    output = options.output or SMALL_FOLDER / options.name
    try:
        model, processor = assemble_small(options.name, {name: getattr(options, name) for name in PARTS}, options.seed)
    except (OSError, ValueError, UserError) as error:
        raise SystemExit(f"error: {str(error).strip().splitlines()[0]}") from error
    model.save_pretrained(output)
    processor.save_pretrained(output)
    print(f"wrote {output}: {sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f} million parameters")


if __name__ == "__main__":
    main()
