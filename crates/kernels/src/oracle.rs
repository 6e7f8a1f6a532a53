//! What the tests of all operations share: random tensors, comparisons, gradients and finite differences.
#![allow(clippy::unwrap_used)]

use burn::Tensor;
use burn::tensor::{DType, Device, Gradients, TensorData};

/// A small generator, so that every test names its own numbers; its tensors lie on one device.
pub(crate) struct Random {
    state: u64,
    device: Device,
}

impl Random {
    /// On the CPU.
    pub(crate) fn new(seed: u64) -> Self {
        Self::on(&Device::flex(), seed)
    }

    fn on(device: &Device, seed: u64) -> Self {
        Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, device: device.clone() }
    }

    /// The same numbers on the CPU and on the GPU, where this build and machine have one.
    pub(crate) fn everywhere(seed: u64) -> Vec<Self> {
        [Some(Device::flex()), gpu()].into_iter().flatten().map(|device| Self::on(&device, seed)).collect()
    }

    /// The same where bf16 is a number format of the device.
    pub(crate) fn everywhere_in_bf16(seed: u64) -> Vec<Self> {
        let takes = |device: &Device| device.supports_dtype(DType::BF16);
        let mut everywhere = Self::everywhere(seed);
        everywhere.retain(|random| random.device == Device::flex() || takes(&random.device));
        everywhere
    }

    /// On the GPU only, where there is one.
    #[cfg(feature = "gpu")]
    pub(crate) fn on_gpu(seed: u64) -> Option<Self> {
        gpu().map(|device| Self::on(&device, seed))
    }

    /// The same where bf16 is a number format of the device.
    #[cfg(feature = "gpu")]
    pub(crate) fn on_gpu_in_bf16(seed: u64) -> Option<Self> {
        Self::on_gpu(seed).filter(|random| random.device.supports_dtype(DType::BF16))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 33) as usize % bound
    }

    /// In `-1..1`.
    pub(crate) fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// A plain f32 tensor with elements in `-1..1`.
    pub(crate) fn tensor<const D: usize>(&mut self, shape: [usize; D]) -> Tensor<D> {
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| self.unit()).collect();
        Tensor::from_data(TensorData::new(values, shape), &self.device)
    }

    /// The same, but a view: the two last axes swapped, cut out of something larger.
    pub(crate) fn view<const D: usize>(&mut self, shape: [usize; D]) -> Tensor<D> {
        self.view_of(shape, DType::F32)
    }

    /// A bf16 tensor, or a view.
    pub(crate) fn narrow<const D: usize>(&mut self, shape: [usize; D], strided: bool) -> Tensor<D> {
        if strided { self.view_of(shape, DType::BF16) } else { self.tensor(shape).cast(DType::BF16) }
    }

    fn view_of<const D: usize>(&mut self, shape: [usize; D], dtype: DType) -> Tensor<D> {
        if shape.contains(&0) {
            return self.tensor(shape).cast(dtype);
        }
        let mut outer = shape;
        outer.swap(D - 2, D - 1);
        outer[D - 2] += 3;
        outer[D - 1] += 2;
        let outer = self.tensor(outer).cast(dtype);
        outer.narrow(D - 2, 1, shape[D - 1]).narrow(D - 1, 2, shape[D - 2]).swap_dims(D - 2, D - 1)
    }
}

/// The GPU that tests run on: the first one CUDA finds, else the first of wgpu's, which may be a software device.
#[cfg(feature = "gpu")]
pub(crate) fn gpu() -> Option<Device> {
    static FOUND: std::sync::OnceLock<Option<Device>> = std::sync::OnceLock::new();
    let find = || {
        let mut found: Vec<Device> = Vec::new();
        #[cfg(feature = "cuda")]
        found.extend(Device::enumerate(burn::tensor::DeviceType::Cuda).iter().cloned());
        #[cfg(feature = "wgpu")]
        found.extend(Device::enumerate(burn::tensor::DeviceType::Wgpu).iter().cloned());
        #[cfg(feature = "vulkan")]
        found.extend(Device::enumerate(burn::tensor::DeviceType::Vulkan).iter().cloned());
        found.into_iter().next()
    };
    FOUND.get_or_init(find).clone()
}

/// This build has no GPU forms.
#[cfg(not(feature = "gpu"))]
pub(crate) fn gpu() -> Option<Device> {
    None
}

/// The same numbers on the CPU, where the reference of a GPU form is computed: tuning every product of it on a software
/// device takes minutes.
pub(crate) fn on_cpu<const D: usize>(tensor: &Tensor<D>) -> Tensor<D> {
    tensor.clone().inner().to_device(&Device::flex())
}

/// The same numbers in f32, for the oracle of a bf16 form.
pub(crate) fn wide<const D: usize>(tensor: &Tensor<D>) -> Tensor<D> {
    tensor.clone().inner().cast(DType::F32)
}

/// That a bf16 result is the f32 one, rounded: a bf16 has 8 significant bits, so the nearest is within 2⁻⁸ of the number.
/// Beside that both may differ as two f32 forms do, by 1e-5 of the largest number.
#[track_caller]
pub(crate) fn assert_rounded<const D: usize>(actual: &Tensor<D>, exact: &Tensor<D>, what: &str) {
    assert_nearly_rounded(actual, exact, 1e-5, what);
}

/// The same where the result also comes from a number that was kept in bf16: `kept` is what that may change, as a part of
/// the largest number.
#[track_caller]
pub(crate) fn assert_nearly_rounded<const D: usize>(actual: &Tensor<D>, exact: &Tensor<D>, kept: f64, what: &str) {
    assert_eq!(actual.dtype(), DType::BF16, "{what}");
    assert_eq!(actual.dims(), exact.dims(), "{what}");
    let (actual, exact) = (values(actual), values(exact));
    let largest = exact.iter().fold(1e-6_f64, |largest, value| largest.max(value.abs()));
    for (index, (actual, exact)) in actual.iter().zip(&exact).enumerate() {
        let bound = exact.abs() / 256.0 + kept * largest;
        assert!((actual - exact).abs() <= bound, "{what} at {index}: {actual} for {exact}, largest {largest}");
    }
}

pub(crate) fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f64> {
    tensor.clone().inner().into_data().convert::<f64>().try_to_vec::<f64>().unwrap()
}

/// Largest difference, relative to the largest expected value.
pub(crate) fn distance<const D: usize>(actual: &Tensor<D>, expected: &Tensor<D>) -> f64 {
    assert_eq!(actual.dims(), expected.dims());
    let (actual, expected) = (values(actual), values(expected));
    let largest = expected.iter().fold(1e-6_f64, |largest, value| largest.max(value.abs()));
    actual
        .iter()
        .zip(&expected)
        .map(|(a, e)| if a.is_finite() && e.is_finite() { (a - e).abs() / largest } else { f64::INFINITY })
        .fold(0.0, f64::max)
}

#[track_caller]
pub(crate) fn assert_close<const D: usize>(actual: &Tensor<D>, expected: &Tensor<D>, what: &str) {
    let distance = distance(actual, expected);
    assert!(distance < 1e-5, "{what} is {distance:e} away from the reference");
}

#[track_caller]
pub(crate) fn assert_same_bits<const D: usize>(one: &Tensor<D>, two: &Tensor<D>, what: &str) {
    let bits = |t: &Tensor<D>| -> Vec<u32> {
        let wide = t.clone().inner().cast(DType::F32).into_data().try_to_vec::<f32>().unwrap();
        wide.iter().map(|value| value.to_bits()).collect()
    };
    assert_eq!(one.dtype(), two.dtype(), "{what}");
    assert!(bits(one) == bits(two), "{what} differs in its bits");
}

/// A tracked leaf with the values of `tensor`.
pub(crate) fn leaf<const D: usize>(tensor: &Tensor<D>) -> Tensor<D> {
    tensor.clone().inner().autodiff().require_grad()
}

/// Gradients of `Σ y·upstream`.
pub(crate) fn backward<const D: usize>(y: &Tensor<D>, upstream: &Tensor<D>) -> Gradients {
    let upstream = upstream.clone().to_device(&y.device().without_autodiff());
    (y.clone() * upstream).backward()
}

/// Central differences of `Σ f(x)·upstream` in f64 on every element of `x`.
pub(crate) fn finite_differences<const D: usize, const E: usize>(
    x: &Tensor<D>,
    upstream: &Tensor<E>,
    f: impl Fn(Tensor<D>) -> Tensor<E>,
) -> Tensor<D> {
    let (shape, upstream, mut point) = (x.dims(), values(upstream), values(x));
    let device = Device::flex();
    let scalar = |point: &[f64]| -> f64 {
        let x = Tensor::from_data(TensorData::new(point.to_vec(), shape), (&device, DType::F64));
        values(&f(x)).iter().zip(&upstream).map(|(y, g)| y * g).sum()
    };
    let step = 1e-5;
    let slopes: Vec<f64> = (0..point.len())
        .map(|index| {
            let here = point[index];
            point[index] = here + step;
            let above = scalar(&point);
            point[index] = here - step;
            let below = scalar(&point);
            point[index] = here;
            (above - below) / (2.0 * step)
        })
        .collect();
    Tensor::from_data(TensorData::new(slopes, shape), (&device, DType::F64))
}

/// f64 copy on the CPU, for the constants of a finite difference.
pub(crate) fn double<const D: usize>(tensor: &Tensor<D>) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values(tensor), tensor.dims()), (&Device::flex(), DType::F64))
}

/// Runs `f` on a pool of `threads` threads.
pub(crate) fn on_threads<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}

/// What `Random::everywhere` covers is part of what the tests say.
#[test]
#[cfg(feature = "gpu")]
#[expect(clippy::print_stderr, reason = "a test that is not run has to say so")]
fn the_gpu_of_the_tests_is_named() {
    match gpu() {
        Some(device) => eprintln!("GPU forms are tested on {device:?}"),
        None => eprintln!("no GPU, not even a software one: its forms are not tested"),
    }
}
