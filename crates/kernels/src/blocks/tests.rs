//! Products with weights in blocks against the same products with the decoded numbers, forward and backward.
#![allow(clippy::unwrap_used)]

use burn::tensor::DType;

use super::*;
use crate::oracle::{Random, assert_close, assert_same_bits, backward, leaf, on_threads};
use crate::{Adapter, Dropout, Groups, Projection, grouped_linear, head_loss, projections, reference, token_logp};

/// Three numbers a block, so that nothing is aligned: the number's place gives the number.
#[derive(Debug)]
struct Threes(Vec<f32>);

impl Packed for Threes {
    fn numbers(&self) -> usize {
        self.0.len()
    }

    fn bytes(&self) -> usize {
        4 * self.0.len()
    }

    fn format(&self) -> &str {
        "threes"
    }

    fn decode(&self, first: usize, values: &mut [f32]) {
        for_blocks(first, 3, values, |block, skipped, values| {
            values.copy_from_slice(&self.0[3 * block + skipped..][..values.len()]);
        });
    }
}

/// Both formats, and one of the test's own.
fn formats(random: &mut Random, rows: usize, width: usize) -> Vec<Arc<dyn Packed>> {
    let values: Vec<f32> = (0..rows * width).map(|_| random.unit() * 0.3).collect();
    let read = |first: usize, part: &mut [f32]| {
        part.copy_from_slice(&values[first..][..part.len()]);
        Ok::<(), std::convert::Infallible>(())
    };
    let (nf4, int8) = (Nf4::quantise(values.len(), read).unwrap(), Int8::quantise(rows, width, read).unwrap());
    vec![Arc::new(nf4), Arc::new(int8), Arc::new(Threes(values.clone()))]
}

fn dense<const D: usize>(blocks: &Blocks<D>) -> Tensor<D> {
    blocks.dense(&Device::flex(), DType::F32)
}

#[test]
fn int8_is_within_half_a_step_of_its_row() {
    let mut random = Random::new(3);
    let values: Vec<f32> = (0..7 * 33).map(|_| random.unit()).collect();
    let read = |first: usize, part: &mut [f32]| {
        part.copy_from_slice(&values[first..][..part.len()]);
        Ok::<(), std::convert::Infallible>(())
    };
    let packed = Int8::quantise(7, 33, read).unwrap();
    assert_eq!(packed.bytes() as u64, Int8::bytes_of(7 * 33, 7));
    let mut decoded = vec![0.0; values.len()];
    packed.decode(0, &mut decoded);
    for (values, decoded) in values.chunks(33).zip(decoded.chunks(33)) {
        let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        for (value, decoded) in values.iter().zip(decoded) {
            assert!((value - decoded).abs() <= largest / 254.0 * 1.0001, "{value} {decoded}");
        }
        assert!(decoded.iter().any(|value| (value.abs() - largest).abs() < 1e-6), "the largest is kept");
    }
    let nothing = |_: usize, part: &mut [f32]| {
        part.fill(0.0);
        Ok::<(), std::convert::Infallible>(())
    };
    let zeros = Int8::quantise(2, 2, nothing).unwrap();
    let mut decoded = vec![1.0; 4];
    zeros.decode(0, &mut decoded);
    assert_eq!(decoded, [0.0; 4]);
}

#[test]
fn numbers_in_host_memory_are_brought_as_they_are() {
    let mut random = Random::new(9);
    for dtype in [DType::F32, DType::BF16] {
        let numbers: Tensor<2> = random.tensor([5, 7]).cast(dtype);
        let expected = numbers.clone().cast(DType::F32);
        // Where numbers may lie, and a byte further, where none may.
        for skipped in [4, 5] {
            let bytes = [&vec![0; skipped], numbers.to_data().as_bytes()].concat();
            let packed = HostNumbers::new(bytes::Bytes::from(bytes).slice(skipped..), dtype);
            assert_eq!((packed.numbers(), packed.bytes()), (35, 35 * dtype.size()));
            let mut decoded = vec![0.0; 8];
            packed.decode(10, &mut decoded);
            let part = packed.numbers_on(10, 8, &Device::flex(), DType::F32);
            assert_eq!(part.is_some(), skipped == 4);
            if let Some(part) = part {
                assert_eq!(part.dtype(), dtype);
                assert_eq!(part.cast(DType::F32).to_data().try_to_vec::<f32>().unwrap(), decoded);
            }
            assert_same_bits(&dense(&Blocks::new(Arc::new(packed), [5, 7])), &expected, "all of it");
        }
    }
}

#[test]
fn rows_and_whole_are_the_same_numbers() {
    let mut random = Random::new(4);
    for packed in formats(&mut random, 11, 70) {
        let blocks = Blocks::new(packed, [11, 70]);
        let rows = blocks.rows(&[3, 0, 10, 3], &Device::flex(), DType::F32);
        let whole = dense(&blocks);
        for (index, row) in [3, 0, 10, 3].into_iter().enumerate() {
            assert_same_bits(&rows.clone().narrow(0, index, 1), &whole.clone().narrow(0, row, 1), "row");
        }
        let stack = Blocks::new(blocks.packed().clone(), [1, 11, 70]);
        assert_same_bits(&dense(&stack.matrix(0)), &whole, "matrix");
    }
}

/// Output and gradients of x, A and B of two maps of one input, the first with an adapter.
fn results(
    operands: &[Tensor<2>; 5],
    weights: [Weight<2>; 2],
    dropout: Option<Dropout>,
    by: impl Fn(Tensor<2>, [Projection; 2]) -> [Tensor<2>; 2],
) -> Vec<Tensor<2>> {
    let [x, a, b] = [0, 1, 2].map(|at| leaf(&operands[at]));
    let bias: Tensor<1> = operands[3].clone().squeeze_dim(0);
    let [one, two] = weights;
    let adapter = Adapter { a: a.clone(), b: b.clone(), scale: 1.5, dropout };
    let maps = [
        Projection { weight: one, bias: Some(bias), adapter: Some(adapter) },
        Projection { weight: two, bias: None, adapter: None },
    ];
    let [y, z] = by(x.clone(), maps);
    let grads = backward(&(y.clone() + z.clone()), &operands[4]);
    vec![y.inner(), z.inner(), x.grad(&grads).unwrap(), a.grad(&grads).unwrap(), b.grad(&grads).unwrap()]
}

const NAMES: [&str; 5] = ["y", "z", "dx", "da", "db"];

/// Shapes of a few rows and many, with sums that fall into several stages and more columns than are decoded together.
const SHAPES: [[usize; 3]; 11] = [
    [1, 5, 3],
    [1, 128, 96],
    [2, 70, 33],
    [3, 64, 64],
    [5, 96, 40],
    [20, 256, 70],
    [32, 33, 65],
    [40, 1, 7],
    [47, 70, 1],
    [130, 300, 600],
    [64, 4500, 2500],
];

#[test]
fn a_linear_map_has_the_bits_of_its_decoded_weight() {
    let mut random = Random::new(5);
    for [tokens, inputs, outputs] in SHAPES {
        let upstream = random.tensor([tokens, outputs]);
        let operands = [
            random.tensor([tokens, inputs]),
            random.tensor([3, inputs]),
            random.tensor([outputs, 3]),
            random.tensor([1, outputs]),
            upstream,
        ];
        for packed in formats(&mut random, outputs, inputs) {
            let blocks = Blocks::new(packed, [outputs, inputs]);
            for dtype in [DType::F32, DType::BF16] {
                let mut operands = operands.clone();
                [0, 3, 4].into_iter().for_each(|at| operands[at] = operands[at].clone().cast(dtype));
                for dropout in [None, Some(Dropout { p: 0.3, key: 9 })] {
                    let case =
                        format!("{}, {tokens} {inputs} {outputs}, {dtype:?}, {dropout:?}", blocks.packed().format());
                    let decoded = dense(&blocks);
                    let fast = results(&operands, [blocks.clone().into(), blocks.clone().into()], dropout, projections);
                    let expected = results(&operands, [decoded.clone().into(), decoded.into()], dropout, projections);
                    for ((fast, expected), name) in fast.iter().zip(&expected).zip(NAMES) {
                        assert_same_bits(fast, expected, &format!("{name}: {case}"));
                    }
                }
            }
        }
    }
}

#[test]
fn a_linear_map_agrees_with_its_reference() {
    let mut random = Random::new(6);
    for [tokens, inputs, outputs] in &SHAPES[..10] {
        let (tokens, inputs, outputs) = (*tokens, *inputs, *outputs);
        let operands = [
            random.view([tokens, inputs]),
            random.view([3, inputs]),
            random.view([outputs, 3]),
            random.tensor([1, outputs]),
            random.view([tokens, outputs]),
        ];
        for packed in formats(&mut random, outputs, inputs) {
            let blocks = Blocks::new(packed, [outputs, inputs]);
            let weights = || [blocks.clone().into(), blocks.clone().into()];
            let by_reference = |x: Tensor<2>, maps: [Projection; 2]| {
                maps.map(|map| reference::linear(x.clone(), map.weight, map.bias, map.adapter))
            };
            let (fast, expected) =
                (results(&operands, weights(), None, projections), results(&operands, weights(), None, by_reference));
            for ((fast, expected), name) in fast.iter().zip(&expected).zip(NAMES) {
                assert_close(fast, expected, name);
            }
        }
    }
}

#[test]
fn the_bits_do_not_depend_on_the_number_of_threads() {
    let mut random = Random::new(7);
    let (tokens, inputs, outputs) = (200, 700, 900);
    let operands = [
        random.tensor([tokens, inputs]),
        random.tensor([3, inputs]),
        random.tensor([outputs, 3]),
        random.tensor([1, outputs]),
        random.tensor([tokens, outputs]),
    ];
    for packed in formats(&mut random, outputs, inputs) {
        let blocks = Blocks::new(packed, [outputs, inputs]);
        let run = || results(&operands, [blocks.clone().into(), blocks.clone().into()], None, projections);
        let (one, three) = (on_threads(1, run), on_threads(3, run));
        for ((one, three), name) in one.iter().zip(&three).zip(NAMES) {
            assert_same_bits(one, three, name);
        }
    }
}

#[test]
fn experts_have_the_bits_of_their_decoded_weights() {
    let mut random = Random::new(8);
    for (counts, [inputs, outputs]) in
        [(vec![3, 0, 1, 7], [70, 33]), (vec![40, 2], [64, 300]), (vec![5; 17], [96, 40]), (vec![0, 0], [5, 6])]
    {
        let groups = Groups::of_counts(&counts);
        let x = random.tensor([groups.rows(), inputs]);
        let upstream = random.tensor([groups.rows(), outputs]);
        for packed in formats(&mut random, counts.len() * outputs, inputs) {
            let blocks = Blocks::new(packed, [counts.len(), outputs, inputs]);
            let run = |weight: Weight<3>, fast: bool| {
                let x = leaf(&x);
                let y = if fast {
                    grouped_linear(x.clone(), weight, &groups, None)
                } else {
                    reference::grouped_linear(&x, weight, &groups, None)
                };
                let grads = (groups.rows() > 0).then(|| backward(&y, &upstream));
                (y.inner(), grads.and_then(|grads| x.grad(&grads)))
            };
            let (fast, expected) = (run(blocks.clone().into(), true), run(dense(&blocks).into(), true));
            let by_reference = run(blocks.into(), false);
            assert_same_bits(&fast.0, &expected.0, "y");
            assert_close(&fast.0, &by_reference.0, "y");
            if let (Some(dx), Some(expected), Some(by_reference)) = (fast.1, expected.1, by_reference.1) {
                assert_same_bits(&dx, &expected, "dx");
                assert_close(&dx, &by_reference, "dx");
            }
        }
    }
}

#[test]
fn a_head_has_the_bits_of_its_decoded_weight() {
    let mut random = Random::new(9);
    let (tokens, size, vocabulary) = (50, 70, 301);
    let h = random.tensor([tokens, size]);
    let targets: Vec<i32> = (0..tokens).map(|t| if t % 5 == 0 { -1 } else { (t * 37 % vocabulary) as i32 }).collect();
    let weights = vec![0.25; tokens];
    let upstream = random.tensor([tokens]);
    for packed in formats(&mut random, vocabulary, size) {
        let blocks = Blocks::new(packed, [vocabulary, size]);
        let run = |head: Weight<2>| {
            let h_leaf = leaf(&h);
            let logp = token_logp(h_leaf.clone(), head.clone(), &targets);
            let grads = backward(&logp, &upstream);
            let loss = head_loss(h.clone(), head, &targets, &weights);
            assert!(loss.dhead.is_none());
            (logp.inner(), h_leaf.grad(&grads).unwrap(), loss.dh)
        };
        let (fast, expected) = (run(blocks.clone().into()), run(dense(&blocks).into()));
        assert_same_bits(&fast.0, &expected.0, "logp");
        assert_same_bits(&fast.1, &expected.1, "dh of logp");
        assert_same_bits(&fast.2, &expected.2, "dh of loss");
    }
}

/// On a GPU the numbers come out of a kernel, and products take them from there.
#[cfg(feature = "gpu")]
#[test]
fn blocks_on_a_gpu_are_those_of_the_host() {
    let Some(gpu) = crate::oracle::gpu() else { return };
    let mut random = Random::new(12);
    for [rows, width] in [[3, 64], [5, 23], [40, 130]] {
        for packed in formats(&mut random, rows, width).into_iter().take(2) {
            let host = Blocks::new(packed, [rows, width]);
            let there = host.clone().on(&gpu);
            assert_eq!((there.packed().bytes(), there.packed().numbers()), (host.packed().bytes(), rows * width));
            let what = format!("{} [{rows}, {width}]", host.packed().format());
            let expected = host.decoded();
            let dense: Vec<f32> = there.dense(&gpu, DType::F32).into_data().try_to_vec().unwrap();
            let close = |found: &[f32], expected: &[f32]| {
                found.iter().zip(expected).all(|(f, e)| (f - e).abs() <= 1e-6 * e.abs().max(0.01))
            };
            assert!(close(&dense, &expected), "{what}");
            // From the middle of a word on.
            let mut part = vec![0.0; 11];
            there.packed().decode(13, &mut part);
            assert!(close(&part, &expected[13..24]), "{what}: a part");
            let x: Tensor<2> = random.tensor([4, width]);
            let upstream: Tensor<2> = random.tensor([4, rows]);
            let run = |weight: Weight<2>, device: &Device| {
                let x = leaf(&Tensor::from_data(x.to_data(), device));
                let [y] = projections(x.clone(), [Projection { weight, bias: None, adapter: None }]);
                let upstream = Tensor::from_data(upstream.to_data(), device);
                let dx = x.grad(&backward(&y, &upstream)).unwrap();
                [y.inner(), dx].map(|tensor| Tensor::<2>::from_data(tensor.into_data(), &Device::flex()))
            };
            let found = run(there.into(), &gpu);
            let expected = run(host.dense(&Device::flex(), DType::F32).into(), &Device::flex());
            for (found, expected) in found.iter().zip(&expected) {
                assert_close(found, expected, &what);
            }
        }
    }
}

/// ggml's `dequantize_row_*`, number by number, from the definitions of its blocks.
#[cfg(feature = "gpu")]
fn number_of(format: Ggml, block: &[u8], i: usize) -> f32 {
    let half = |at: usize| {
        let bits = u16::from_le_bytes([block[at], block[at + 1]]);
        burn::tensor::f16::from_bits(bits).to_f32()
    };
    let nibble = |pairs: usize| u32::from(block[pairs + i % 16] >> (i / 16 * 4) & 15);
    let fifth = |at: usize| u32::from(block[at + i / 8] >> (i % 8) & 1) << 4;
    match format {
        Ggml::Q4_0 => (nibble(2) as f32 - 8.0) * half(0),
        Ggml::Q4_1 => nibble(4) as f32 * half(0) + half(2),
        Ggml::Q5_0 => ((nibble(6) | fifth(2)) as f32 - 16.0) * half(0),
        Ggml::Q5_1 => (nibble(8) | fifth(4)) as f32 * half(0) + half(2),
        Ggml::Q8_0 => f32::from(block[2 + i].cast_signed()) * half(0),
        Ggml::Q4_K | Ggml::Q5_K => {
            let (j, q) = (i / 32, &block[4..16]);
            let (scale, least) = match j {
                0..4 => (q[j] & 63, q[j + 4] & 63),
                _ => (q[j + 4] & 15 | q[j - 4] >> 6 << 4, q[j + 4] >> 4 | q[j] >> 6 << 4),
            };
            let pairs = if format == Ggml::Q4_K { 16 } else { 48 };
            let low = block[pairs + i / 64 * 32 + i % 32] >> (j % 2 * 4) & 15;
            let high = if format == Ggml::Q4_K { 0 } else { block[16 + i % 32] >> j & 1 };
            half(0) * f32::from(scale) * f32::from(low | high << 4) - half(2) * f32::from(least)
        }
        Ggml::Q6_K => {
            let (side, quarter, column) = (i / 128, i % 128 / 32, i % 32);
            let low = block[64 * side + 32 * (quarter % 2) + column] >> (quarter / 2 * 4) & 15;
            let high = block[128 + 32 * side + column] >> (2 * quarter) & 3;
            let scale = block[192 + i / 16].cast_signed();
            half(208) * f32::from(scale) * (f32::from(low | high << 4) - 32.0)
        }
    }
}

#[cfg(feature = "gpu")]
#[test]
fn blocks_of_files_decode_on_a_gpu_to_the_same_bits() {
    let Some(gpu) = crate::oracle::gpu() else { return };
    let mut random = Random::new(13);
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    for format in Ggml::ALL {
        let (length, size) = format.block();
        let blocks = 512 / length;
        let mut bytes: Vec<u8> = (0..blocks * size).map(|_| random.below(256) as u8).collect();
        // Any scale but one that is no number, the smallest among them.
        let halves: &[usize] = match format {
            Ggml::Q6_K => &[208],
            Ggml::Q4_0 | Ggml::Q5_0 | Ggml::Q8_0 => &[0],
            _ => &[0, 2],
        };
        for (index, block) in bytes.chunks_mut(size).enumerate() {
            for &at in halves {
                block[at + 1] &= if index == 1 { 0x83 } else { 0xbb };
            }
        }
        let expected: Vec<f32> =
            (0..blocks * length).map(|n| number_of(format, &bytes[n / length * size..], n % length)).collect();
        let there = format.on(&bytes, &gpu).unwrap();
        let name = format.name();
        assert_eq!((there.numbers(), there.bytes(), there.format()), (512, bytes.len(), name));
        let matrix = Blocks::new(there.into(), [4, 128]);
        let whole: Vec<f32> = matrix.dense(&gpu, DType::F32).into_data().try_to_vec().unwrap();
        assert_eq!(bits(&whole), bits(&expected), "{name}");
        // From the middle of eight numbers on.
        let mut part = vec![0.0; 27];
        matrix.packed().decode(213, &mut part);
        assert_eq!(bits(&part), bits(&expected[213..240]), "{name}: a part");
        let rows: Vec<f32> = matrix.rows(&[3, 0, 3], &gpu, DType::F32).into_data().try_to_vec().unwrap();
        let of_rows = [&expected[384..], &expected[..128], &expected[384..]].concat();
        assert_eq!(bits(&rows), bits(&of_rows), "{name}: rows");
        let stack = Blocks::new(matrix.packed().clone(), [2, 2, 128]);
        let second: Vec<f32> = stack.matrix(1).dense(&gpu, DType::F32).into_data().try_to_vec().unwrap();
        assert_eq!(bits(&second), bits(&expected[256..]), "{name}: a matrix of several");
    }
}
