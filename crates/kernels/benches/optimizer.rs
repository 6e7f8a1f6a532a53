//! The update and the gradient norm of adapters of rank 16 on a 0.6B model: 392 tensors, 10.1M numbers. `items` are bytes
//! read and written.

use burn::Tensor;
use burn::tensor::{DType, Device, Distribution};
use divan::Bencher;
use divan::counter::BytesCount;
use qwen_tune_kernels::{
    AdamW, Codes, CompactTrained, DynamicMap, Moment, Trained, adamw, adamw_compact, global_norm, reference,
};

const RULE: AdamW = AdamW { step: 10, learning_rate: 1e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, clip: 0.5 };
const LAYERS: usize = 28;
/// Inputs and outputs of the seven linear layers of a block.
const LINEAR: [(usize, usize); 7] =
    [(1024, 2048), (1024, 1024), (1024, 1024), (2048, 1024), (1024, 3072), (1024, 3072), (3072, 1024)];

fn main() {
    divan::main();
}

fn draw() -> Vec<Tensor<1>> {
    let sizes = (0..LAYERS).flat_map(|_| LINEAR).flat_map(|(inputs, outputs)| [16 * inputs, 16 * outputs]);
    sizes.map(|size| Tensor::random([size], Distribution::Uniform(-1.0, 1.0), &Device::flex())).collect()
}

fn bytes(tensors: &[Tensor<1>], passes: usize) -> BytesCount {
    BytesCount::new(tensors.iter().map(|tensor| tensor.dims()[0] * 4 * passes).sum::<usize>())
}

fn update(bencher: Bencher, with: fn(&mut [Trained<'_>], &AdamW)) {
    let (mut values, gradients, mut first) = (draw(), draw(), draw());
    let mut second: Vec<Tensor<1>> = first.iter().map(|m| m.clone() * m.clone()).collect();
    bencher.counter(bytes(&gradients, 7)).bench_local(|| {
        let moments = first.iter_mut().zip(&mut second);
        let mut trained: Vec<Trained<'_>> = values
            .iter_mut()
            .zip(&gradients)
            .zip(moments)
            .map(|((value, gradient), (first, second))| Trained { value, gradient, first, second, weight_decay: 0.01 })
            .collect();
        with(&mut trained, &RULE);
    });
}

#[divan::bench]
fn adamw_fast(bencher: Bencher) {
    update(bencher, adamw);
}

#[divan::bench]
fn adamw_reference(bencher: Bencher) {
    update(bencher, reference::adamw);
}

/// Moments as codes, values as they are or in bf16: 16 or 12 bytes a number instead of 28.
fn compact(bencher: Bencher, dtype: DType) {
    let mut values: Vec<Tensor<1>> = draw().into_iter().map(|value| value.cast(dtype)).collect();
    let gradients = draw();
    let codes = |gradient: &Tensor<1>, map| Moment::Codes(Codes::zeros(gradient.dims()[0], map, &Device::flex()));
    let mut moments: Vec<[Moment; 2]> =
        gradients.iter().map(|g| [codes(g, DynamicMap::Signed), codes(g, DynamicMap::Unsigned)]).collect();
    let bytes_a_number = 4 + 2 * 2 + 2 * dtype.size();
    let numbers = gradients.iter().map(|gradient| gradient.dims()[0]).sum::<usize>();
    bencher.counter(BytesCount::new(numbers * bytes_a_number)).bench_local(|| {
        let mut trained: Vec<CompactTrained<'_>> = values
            .iter_mut()
            .zip(&gradients)
            .zip(&mut moments)
            .map(|((value, gradient), [first, second])| CompactTrained {
                value,
                gradient,
                first,
                second,
                weight_decay: 0.01,
                key: 1,
            })
            .collect();
        adamw_compact(&mut trained, &RULE);
    });
}

#[divan::bench]
fn adamw_compact_codes(bencher: Bencher) {
    compact(bencher, DType::F32);
}

#[divan::bench]
fn adamw_compact_codes_bf16(bencher: Bencher) {
    compact(bencher, DType::BF16);
}

fn norm(bencher: Bencher, with: fn(&[&Tensor<1>]) -> f64) {
    let gradients = draw();
    let counter = bytes(&gradients, 1);
    let gradients: Vec<&Tensor<1>> = gradients.iter().collect();
    bencher.counter(counter).bench_local(|| with(&gradients));
}

#[divan::bench]
fn norm_fast(bencher: Bencher) {
    norm(bencher, global_norm);
}

#[divan::bench]
fn norm_reference(bencher: Bencher) {
    norm(bencher, reference::global_norm);
}
