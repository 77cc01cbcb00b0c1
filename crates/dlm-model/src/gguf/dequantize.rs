//! The formats of tensors in GGUF files, and their numbers in float32.

/// How the numbers of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    F32,
    F16,
    Bf16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq4Nl,
}

/// The numbers that the four bits of IQ4_NL stand for.
const IQ4_NL: [f32; 16] =
    [-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0];

/// Number, name, and what is read of it.
const FORMATS: &[(u32, &str, Option<Format>)] = &[
    (0, "F32", Some(Format::F32)),
    (1, "F16", Some(Format::F16)),
    (2, "Q4_0", Some(Format::Q4_0)),
    (3, "Q4_1", Some(Format::Q4_1)),
    (6, "Q5_0", Some(Format::Q5_0)),
    (7, "Q5_1", Some(Format::Q5_1)),
    (8, "Q8_0", Some(Format::Q8_0)),
    (9, "Q8_1", None),
    (10, "Q2_K", Some(Format::Q2K)),
    (11, "Q3_K", Some(Format::Q3K)),
    (12, "Q4_K", Some(Format::Q4K)),
    (13, "Q5_K", Some(Format::Q5K)),
    (14, "Q6_K", Some(Format::Q6K)),
    (15, "Q8_K", None),
    (16, "IQ2_XXS", None),
    (17, "IQ2_XS", None),
    (18, "IQ3_XXS", None),
    (19, "IQ1_S", None),
    (20, "IQ4_NL", Some(Format::Iq4Nl)),
    (21, "IQ3_S", None),
    (22, "IQ2_S", None),
    (23, "IQ4_XS", None),
    (24, "I8", None),
    (25, "I16", None),
    (26, "I32", None),
    (27, "I64", None),
    (28, "F64", None),
    (29, "IQ1_M", None),
    (30, "BF16", Some(Format::Bf16)),
    (34, "TQ1_0", None),
    (35, "TQ2_0", None),
    (39, "MXFP4", None),
];

impl Format {
    /// The format of that number, or what it is called.
    pub(super) fn of(number: u32) -> Result<Self, String> {
        match FORMATS.iter().find(|(known, ..)| *known == number) {
            Some((_, _, Some(format))) => Ok(*format),
            Some((_, name, None)) => Err((*name).to_owned()),
            None => Err(format!("number {number}")),
        }
    }

    /// The formats that are read.
    pub(super) fn known() -> String {
        let names: Vec<&str> =
            FORMATS.iter().filter(|(.., format)| format.is_some()).map(|(_, name, _)| *name).collect();
        names.join(", ")
    }

    /// Numbers in a block and bytes that hold it.
    pub(super) fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q8_0 => (32, 34),
            Self::Q4_0 | Self::Iq4Nl => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q2K => (256, 84),
            Self::Q3K => (256, 110),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
        }
    }
}

/// The numbers of whole blocks, as ggml computes them.
pub(super) fn dequantize(format: Format, bytes: &[u8]) -> Vec<f32> {
    let (numbers, size) = format.block();
    let mut out = Vec::with_capacity(bytes.len() / size * numbers);
    for block in bytes.chunks_exact(size) {
        match format {
            Format::F32 => out.push(f32::from_le_bytes([block[0], block[1], block[2], block[3]])),
            Format::F16 => out.push(half(block, 0)),
            Format::Bf16 => out.push(f32::from_bits(u32::from(u16::from_le_bytes([block[0], block[1]])) << 16)),
            Format::Q8_0 => {
                let scale = half(block, 0);
                out.extend(block[2..].iter().map(|&q| f32::from(q.cast_signed()) * scale));
            }
            Format::Q4_0 => {
                let scale = half(block, 0);
                out.extend(nibbles(&block[2..]).map(|q| scale * (f32::from(q) - 8.0)));
            }
            Format::Q4_1 => {
                let (scale, min) = (half(block, 0), half(block, 2));
                out.extend(nibbles(&block[4..]).map(|q| scale * f32::from(q) + min));
            }
            Format::Q5_0 => {
                let scale = half(block, 0);
                out.extend(fives(&block[2..]).map(|q| scale * (f32::from(q) - 16.0)));
            }
            Format::Q5_1 => {
                let (scale, min) = (half(block, 0), half(block, 2));
                out.extend(fives(&block[4..]).map(|q| scale * f32::from(q) + min));
            }
            Format::Iq4Nl => {
                let scale = half(block, 0);
                out.extend(nibbles(&block[2..]).map(|q| scale * IQ4_NL[usize::from(q)]));
            }
            Format::Q2K => q2_k(block, &mut out),
            Format::Q3K => q3_k(block, &mut out),
            Format::Q4K => {
                let runs = block[16..].chunks_exact(32).flat_map(|bytes| [nibble(bytes, 0), nibble(bytes, 4)]);
                scaled_runs(block, runs, &mut out);
            }
            Format::Q5K => {
                let (high, low) = block[16..].split_at(32);
                let runs = low.chunks_exact(32).flat_map(|bytes| [nibble(bytes, 0), nibble(bytes, 4)]);
                let runs = runs.enumerate().map(|(run, mut numbers)| {
                    numbers.iter_mut().zip(high).for_each(|(number, high)| *number |= (high >> run & 1) << 4);
                    numbers
                });
                scaled_runs(block, runs, &mut out);
            }
            Format::Q6K => q6_k(block, &mut out),
        }
    }
    out
}

/// First the low halves of all bytes, then the high ones.
fn nibbles(bytes: &[u8]) -> impl Iterator<Item = u8> {
    bytes.iter().map(|byte| byte & 15).chain(bytes.iter().map(|byte| byte >> 4))
}

/// 32 numbers of five bits: the fifth bits of all, then the halves of bytes.
fn fives(bytes: &[u8]) -> impl Iterator<Item = u8> {
    let high = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    nibbles(&bytes[4..]).enumerate().map(move |(i, low)| low | ((high >> i & 1) << 4) as u8)
}

/// A half of each of 32 bytes.
fn nibble(bytes: &[u8], shift: u8) -> [u8; 32] {
    std::array::from_fn(|i| bytes[i] >> shift & 15)
}

/// Eight runs of 32 numbers, each with a scale and a minimum of six bits.
fn scaled_runs(block: &[u8], runs: impl Iterator<Item = [u8; 32]>, out: &mut Vec<f32>) {
    let (scale, min, packed) = (half(block, 0), half(block, 2), &block[4..16]);
    for (run, numbers) in runs.enumerate() {
        let (s, m) = if run < 4 {
            (packed[run] & 63, packed[run + 4] & 63)
        } else {
            let low = packed[run + 4];
            ((low & 15) | (packed[run - 4] >> 6 << 4), (low >> 4) | (packed[run] >> 6 << 4))
        };
        let (s, m) = (scale * f32::from(s), min * f32::from(m));
        out.extend(numbers.map(|q| s * f32::from(q) - m));
    }
}

/// Sixteen runs of 16 numbers of two bits, each with a scale and a minimum of four bits.
fn q2_k(block: &[u8], out: &mut Vec<f32>) {
    let (scales, bytes) = (&block[..16], &block[16..80]);
    let (scale, min) = (half(block, 80), half(block, 82));
    for (run, packed) in scales.iter().enumerate() {
        let (s, m) = (scale * f32::from(packed & 15), min * f32::from(packed >> 4));
        let numbers = twos(bytes, run);
        out.extend(numbers.map(|q| s * f32::from(q) - m));
    }
}

/// Sixteen runs of 16 numbers of three bits, each with a scale of six bits.
fn q3_k(block: &[u8], out: &mut Vec<f32>) {
    let (high, bytes, packed) = (&block[..32], &block[32..96], &block[96..108]);
    let scale = half(block, 108);
    for run in 0..16 {
        let low = packed[run % 8] >> (4 * (run / 8)) & 15;
        let top = packed[8 + run % 4] >> (2 * (run / 4)) & 3;
        let s = scale * (f32::from(low | top << 4) - 32.0);
        let mut at = 16 * (run % 2);
        out.extend(twos(bytes, run).map(|q| {
            let third = high[at] >> (run / 2) & 1;
            at += 1;
            s * (f32::from(q | third << 2) - 4.0)
        }));
    }
}

/// The numbers of two bits of the run of 16: four runs share a byte, and 32 bytes hold eight of them.
fn twos(bytes: &[u8], run: usize) -> [u8; 16] {
    let first = 32 * (run / 8) + 16 * (run % 2);
    std::array::from_fn(|i| bytes[first + i] >> (2 * (run % 8 / 2)) & 3)
}

/// Sixteen runs of 16 numbers of six bits, each with a scale.
fn q6_k(block: &[u8], out: &mut Vec<f32>) {
    let (low, rest) = block.split_at(128);
    let (high, scales) = rest.split_at(64);
    let scale = half(block, 208);
    for half in 0..2 {
        let (low, high, scales) = (&low[64 * half..], &high[32 * half..], &scales[8 * half..]);
        for quarter in 0..4 {
            for i in 0..32 {
                let bits =
                    low[i + 32 * (quarter % 2)] >> (4 * (quarter / 2)) & 15 | (high[i] >> (2 * quarter) & 3) << 4;
                let run = scale * f32::from(scales[2 * quarter + i / 16].cast_signed());
                out.push(run * (f32::from(bits) - 32.0));
            }
        }
    }
}

/// The half-precision number at a byte.
fn half(bytes: &[u8], at: usize) -> f32 {
    let bits = u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let (sign, exponent, fraction) = (u32::from(bits >> 15) << 31, u32::from(bits >> 10 & 31), u32::from(bits & 1023));
    match exponent {
        // A fraction of 2^-24 each: exact in float32.
        0 => f32::from_bits(sign | (fraction as f32 * f32::powi(2.0, -24)).to_bits()),
        31 => f32::from_bits(sign | 0x7f80_0000 | fraction << 13),
        _ => f32::from_bits(sign | (exponent + 112) << 23 | fraction << 13),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use tch::{Kind, Tensor};

    #[test]
    fn blocks_have_the_numbers_that_the_reference_computes() {
        // Random blocks and what `gguf.quants.dequantize` of the package `gguf` makes of them, as the bits of float32.
        let cases: Value = serde_json::from_str(include_str!("../../tests/data/gguf_blocks.json")).unwrap();
        let cases = cases.as_object().unwrap();
        assert_eq!(cases.len(), FORMATS.iter().filter(|(.., format)| format.is_some()).count());
        for (name, case) in cases {
            let format = FORMATS.iter().find(|(_, known, _)| known == name).unwrap().2.unwrap();
            let integers = |key: &str| case[key].as_array().unwrap().iter().map(|v| v.as_u64().unwrap());
            let bytes: Vec<u8> = integers("bytes").map(|byte| byte as u8).collect();
            let expected: Vec<f32> = integers("bits").map(|bits| f32::from_bits(bits as u32)).collect();
            assert_eq!(dequantize(format, &bytes), expected, "{name}");
        }
    }

    #[test]
    fn every_half_precision_number_is_the_one_of_libtorch() {
        let bits: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let expected = Tensor::from_data_size(&bits, &[65536], Kind::Half).to_kind(Kind::Float);
        let expected = Vec::<f32>::try_from(expected).unwrap();
        for (i, (found, expected)) in dequantize(Format::F16, &bits).into_iter().zip(expected).enumerate() {
            assert!(found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan(), "{i:x}");
        }
    }
}
