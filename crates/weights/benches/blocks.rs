//! Block formats of GGUF on one core: 64 rows of 4096 numbers to blocks and back. `items` are numbers.

use divan::Bencher;
use divan::counter::ItemsCount;
use qwen_tune_weights::gguf::{TensorType, blocks};
use rayon::ThreadPoolBuilder;

const ROW: usize = 4096;
const ROWS: usize = 64;

fn main() {
    ThreadPoolBuilder::new().num_threads(1).build_global().expect("the first to ask for threads");
    divan::main();
}

fn types(can: fn(TensorType) -> bool) -> impl Iterator<Item = TensorType> {
    TensorType::ALL.iter().copied().filter(move |&ty| can(ty))
}

/// About normally distributed numbers, as weights are.
fn values() -> Vec<f32> {
    let mut state = 1_u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..ROW * ROWS).map(|_| (0..6).map(|_| uniform()).sum::<f32>() * 0.03).collect()
}

#[divan::bench(args = types(blocks::can_encode))]
fn encode(bencher: Bencher, ty: TensorType) {
    let values = values();
    let mut bytes = vec![0; ty.bytes(&[ROWS, ROW]).expect("whole blocks")];
    bencher
        .counter(ItemsCount::new(values.len()))
        .bench_local(|| blocks::encode_into(ty, &values, ROW, &mut bytes).expect("an encoder"));
}

#[divan::bench(args = types(blocks::can_decode))]
fn decode(bencher: Bencher, ty: TensorType) {
    // Any bytes will do: no decoder looks at them before it computes.
    let bytes: Vec<u8> = (0..ty.bytes(&[ROWS, ROW]).expect("whole blocks")).map(|n| (n % 61) as u8).collect();
    let mut values = vec![0.0; ROW * ROWS];
    bencher
        .counter(ItemsCount::new(values.len()))
        .bench_local(|| blocks::decode(ty, &bytes, &mut values).expect("a decoder"));
}
