//! Tensors that wait in host memory while their device has no room for them.

use std::fmt;

use burn::Tensor;
use burn::tensor::{DType, Device, TensorData};

/// A copy of a tensor in host memory, or on its way there.
///
/// On CubeCL's devices the copy is queued behind the work that makes the tensor, and nothing waits for it before
/// it is asked for: Burn's own `into_data` would keep the tensor on the device until somebody reads its bytes.
pub struct HostCopy<const D: usize> {
    device: Device,
    dtype: DType,
    data: Data,
}

enum Data {
    Here(TensorData),
    #[cfg(feature = "gpu")]
    Coming(cube::Copying),
}

impl<const D: usize> HostCopy<D> {
    /// Begins to copy a tensor without a tape. Its memory on the device is free again when the copy is made, unless
    /// others hold it.
    ///
    /// # Panics
    /// If the device fails.
    #[must_use]
    pub fn of(x: Tensor<D>) -> Self {
        let (device, dtype) = (x.device(), x.dtype());
        #[cfg(feature = "gpu")]
        let data = match cube::copying(&x) {
            Some(copying) => Data::Coming(copying),
            None => Data::Here(x.into_data()),
        };
        #[cfg(not(feature = "gpu"))]
        let data = Data::Here(x.into_data());
        Self { device, dtype, data }
    }

    /// The tensor on its device again, the same bits.
    ///
    /// # Panics
    /// If the device failed before the copy was made.
    #[must_use]
    pub fn bring(self) -> Tensor<D> {
        let (device, dtype) = (self.device.clone(), self.dtype);
        Tensor::from_data(self.into_data(), (&device, dtype))
    }

    /// Its numbers on the host.
    ///
    /// # Panics
    /// If the device failed before the copy was made.
    #[must_use]
    pub fn into_data(self) -> TensorData {
        match self.data {
            Data::Here(data) => data,
            #[cfg(feature = "gpu")]
            Data::Coming(copying) => cube::wait(copying),
        }
    }
}

impl<const D: usize> fmt::Debug for HostCopy<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostCopy").field("dtype", &self.dtype).finish_non_exhaustive()
    }
}

#[cfg(feature = "gpu")]
mod cube {
    use std::future::Future;
    use std::pin::{Pin, pin};
    use std::sync::Arc;
    use std::task::{Context, Poll, Wake, Waker};
    use std::thread::{self, Thread};

    use burn::Tensor;
    use burn::backend::Cube;
    use burn::tensor::TensorData;
    use burn_cubecl::kernel::into_contiguous;

    pub(super) type Copying = Pin<Box<dyn Future<Output = TensorData> + Send>>;

    /// `None` when the tensor is not on a device of CubeCL's.
    pub(super) fn copying<const D: usize>(x: &Tensor<D>) -> Option<Copying> {
        let x = into_contiguous(x.clone().try_into_primitive::<Cube>().ok()?);
        let (shape, dtype) = (x.meta.shape.clone(), x.dtype);
        let bytes = shape.iter().product::<usize>() * dtype.size();
        let mut copying: Copying = Box::pin(async move {
            let read = x.client.read_async(vec![x.handle]).await;
            let read = read.unwrap_or_else(|error| panic!("a copy to host memory failed: {error:?}"));
            let [read] = <[_; 1]>::try_from(read).expect("invariant: one buffer was asked for");
            assert_eq!(read.len(), bytes, "invariant: the buffer is that of the tensor");
            TensorData::from_bytes(read, shape, dtype)
        });
        // Queues the copy here and now; from then on it only waits for the device to get there.
        match copying.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(data) => Some(Box::pin(std::future::ready(data))),
            Poll::Pending => Some(copying),
        }
    }

    /// Sleeps until the copy is there.
    pub(super) fn wait(copying: Copying) -> TensorData {
        struct Sleeper(Thread);
        impl Wake for Sleeper {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }
        let waker = Waker::from(Arc::new(Sleeper(thread::current())));
        let mut copying = pin!(copying);
        loop {
            match copying.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(data) => return data,
                Poll::Pending => thread::park(),
            }
        }
    }
}

#[cfg(all(test, feature = "cpu"))]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn assert_comes_back(x: Tensor<2>) {
        let expected = x.to_data();
        let back = HostCopy::of(x).bring();
        assert_eq!(back.dtype(), expected.dtype());
        assert_eq!(back.to_data().as_bytes(), expected.as_bytes());
    }

    #[test]
    fn bits_come_back_as_they_went() {
        let values = [1.5f32, -0.0, f32::NAN, f32::INFINITY, 1e-40, 3.0];
        let x = |device: &Device| Tensor::<2>::from_data(TensorData::new(values.to_vec(), [2, 3]), device);
        let here = x(&Device::flex());
        for x in [here.clone(), here.clone().transpose(), here.clone().cast(DType::BF16), here.narrow(1, 1, 2)] {
            assert_comes_back(x);
        }
        #[cfg(feature = "gpu")]
        if let Some(device) = crate::oracle::gpu() {
            let there = x(&device);
            for x in [there.clone(), there.clone().transpose(), there.narrow(1, 1, 2)] {
                assert_comes_back(x);
            }
        }
    }
}
