#!/usr/bin/env python3
"""Random blocks of each format and the numbers that the package `gguf` (0.19.0) makes of them: writes gguf_blocks.json beside this file."""
import json
import pathlib

import numpy
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

FORMATS = "F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL".split()

random = numpy.random.default_rng(1)
cases = {}
for name in FORMATS:
    format = GGMLQuantizationType[name]
    numbers, size = GGML_QUANT_SIZES[format]
    blocks = 2 if numbers > 1 else 8
    data = random.integers(0, 256, (blocks, size), dtype=numpy.uint8)
    while True:
        values = dequantize(data.reshape(-1), format).astype(numpy.float32).reshape(blocks, -1)
        infinite = ~numpy.isfinite(values).all(axis=1)
        if not infinite.any():
            break
        data[infinite] = random.integers(0, 256, (infinite.sum(), size), dtype=numpy.uint8)
    cases[name] = {"bytes": data.reshape(-1).tolist(), "bits": values.reshape(-1).view(numpy.uint32).tolist()}
path = pathlib.Path(__file__).with_suffix(".json")
path.write_text(json.dumps(cases) + "\n")
