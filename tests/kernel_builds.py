"""Builds kernels for a GPU that need not be there: `python kernel_builds.py CAPABILITY ROOM` prints what they take."""

import json
import sys
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from prototile.kernels import code, launch

FLOATS = (
    "SUBTRACT_Q",
    "SUBTRACT_K",
    "GAIN_Q",
    "GAIN_K",
    "EXTRA",
    "TOTAL",
    "PRODUCTS",
    "EXTRAS",
    "OFFSET",
    "SCALE",
    "BEST",
)


def build(kernel: Any, flags: dict[str, Any], dims: int, itemsize: int, *, values: bool, capability: int, room: int):
    """The shared memory that the kernel takes, and what the tiles were chosen by."""
    tiles = launch.tiles(dims, itemsize, values=values, room=room)
    assert tiles is not None
    constants = flags | {
        "PRECISION": "tf32x3", "WIDEN": False, "EVEN": dims == launch.padded(dims),
        "BQ": tiles.queries, "BK": tiles.keys, "BD": launch.padded(dims),
    }  # fmt: skip
    kinds = dict.fromkeys(FLOATS, "*fp32") | dict.fromkeys("QKV", "*fp32" if itemsize == 4 else "*bf16")
    kinds |= {"WINNER": "*i32", "NEEDED": "*i32", "WHERE": "*i32", "inverse": "fp32", "bound": "fp32", "boost": "fp32"}
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else kinds.get(name, "i32") for name in names}
    aligned = [i for i, name in enumerate(names) if signature[name].startswith("*") or name in ("d", "span")]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    options = {"num_warps": tiles.warps, "num_stages": tiles.stages, "enable_fp_fusion": True}
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    expected = tiles.shared_bytes(dims, itemsize, values=values)
    return {
        "dims": dims,
        "itemsize": itemsize,
        "flags": str(flags),
        "shared": built.metadata.shared,
        "expected": expected,
    }


def attend(dims: int, itemsize: int, by_rows: bool, same: bool, **target: int):
    flags = {
        "BY_ROWS": by_rows, "HAS_OFFSET": True, "ADJUSTED": False, "HAS_WINNER": False, "HAS_SUBTRACT_Q": by_rows,
        "HAS_SUBTRACT_K": not by_rows, "HAS_GAIN_Q": False, "HAS_GAIN_K": not by_rows, "HAS_VALUES": True,
        "KEYS_ARE_VALUES": same, "HAS_EXTRA": not by_rows, "ADD": not by_rows,
        "VALUE": tl.float32 if itemsize == 4 else tl.bfloat16,
    }  # fmt: skip
    return build(code.attend, flags, dims, itemsize, values=not same, **target)


def largest(dims: int, itemsize: int, **target: int):
    flags = {
        "BY_ROWS": True, "HAS_OFFSET": False, "ADJUSTED": True, "HAS_WINNER": True, "HAS_SUBTRACT_K": False,
        "IF_NEEDED": False, "OTHERS_ONLY": True, "HAS_WHERE": True,
    }  # fmt: skip
    return build(code.largest, flags, dims, itemsize, values=False, **target)


if __name__ == "__main__":
    target = {"capability": int(sys.argv[1]), "room": int(sys.argv[2])}
    builds = [
        attend(256, 2, True, False, **target),
        attend(256, 2, False, True, **target),
        attend(384, 2, False, False, **target),
        attend(256, 4, True, True, **target),
        largest(256, 2, **target),
        largest(256, 4, **target),
    ]
    print(json.dumps(builds))
