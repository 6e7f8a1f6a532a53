//! The update on the CPU: blocks pass through a small scratch in f32, in tasks of many blocks.

use burn::Tensor;
use burn::backend::Flex;
use burn::tensor::{DType, Int, bf16};
use burn_flex::FlexTensor;
use bytemuck::Pod;
use rayon::prelude::*;

use super::codebook::Codebook;
use super::{BLOCK, CompactTrained, DynamicMap, LEAST_SCALE, Moment};
use crate::AdamW;
use crate::adamw::flex::rounded;
use crate::adamw::reference::taken;
use crate::cpu::operand::{contiguous, slice};
use crate::cpu::rows::rows_per_task;
use crate::cpu::vector;

/// False when a tensor is not on burn-flex, or of another dtype than the operation is for; nothing has changed then.
pub(super) fn adamw_compact(trained: &mut [CompactTrained<'_>], rule: &AdamW) -> bool {
    if !trained.iter().all(is_ours) {
        return false;
    }
    let gradients: Vec<FlexTensor> = trained.iter().map(|t| contiguous(float(t.gradient.clone()))).collect();
    let mut held: Vec<Held> = trained.iter_mut().map(Held::take).collect();
    let numbers: Vec<vector::AdamW> = trained.iter().map(|t| rounded(rule, t.weight_decay)).collect();
    let mut pieces = Vec::new();
    for (((held, gradient), numbers), trained) in held.iter_mut().zip(&gradients).zip(&numbers).zip(&*trained) {
        let value = match held.value.dtype() {
            DType::BF16 => Values::Narrow(held.value.storage_mut()),
            _ => Values::Wide(held.value.storage_mut()),
        };
        let (first, second) = (held.first.parts(DynamicMap::Signed), held.second.parts(DynamicMap::Unsigned));
        let whole = Piece { value, first, second, gradient: slice(gradient), numbers, key: trained.key, start: 0 };
        whole.cut_into(&mut pieces);
    }
    pieces.into_par_iter().for_each(Piece::update);
    for (trained, held) in trained.iter_mut().zip(held) {
        held.put_back(trained);
    }
    true
}

fn is_ours(trained: &CompactTrained<'_>) -> bool {
    let is_float = |tensor: &Tensor<1>, dtypes: &[DType]| {
        dtypes.contains(&tensor.dtype()) && tensor.clone().try_into_primitive::<Flex>().is_ok()
    };
    let is_moment = |moment: &Moment| match moment {
        Moment::Wide(tensor) => is_float(tensor, &[DType::F32]),
        Moment::Codes(codes) => {
            codes.codes.dtype() == DType::U8
                && codes.codes.clone().try_into_primitive::<Flex>().is_ok()
                && is_float(&codes.scales, &[DType::F32])
        }
    };
    is_float(trained.value, &[DType::F32, DType::BF16])
        && is_float(trained.gradient, &[DType::F32])
        && is_moment(trained.first)
        && is_moment(trained.second)
}

fn float(tensor: Tensor<1>) -> FlexTensor {
    tensor.try_into_primitive::<Flex>().expect("invariant: seen to be on burn-flex")
}

/// A tensor whose buffer it fills: itself, or a copy when it is a view of something else.
fn whole<E: burn::tensor::Element + Pod>(tensor: FlexTensor) -> FlexTensor {
    let fills = tensor.is_contiguous() && tensor.storage::<E>().len() == tensor.layout().num_elements();
    if fills { tensor } else { tensor.to_contiguous() }
}

/// The tensors of an update, which nobody else holds if they are not shared.
struct Held {
    value: FlexTensor,
    first: HeldMoment,
    second: HeldMoment,
}

enum HeldMoment {
    Wide(FlexTensor),
    Codes(FlexTensor, FlexTensor),
}

impl Held {
    fn take(trained: &mut CompactTrained<'_>) -> Self {
        let value = float(taken(trained.value));
        let value = if value.dtype() == DType::BF16 { whole::<bf16>(value) } else { whole::<f32>(value) };
        Self { value, first: HeldMoment::take(trained.first), second: HeldMoment::take(trained.second) }
    }

    fn put_back(self, trained: &mut CompactTrained<'_>) {
        *trained.value = Tensor::from_primitive::<Flex>(self.value);
        self.first.put_back(trained.first);
        self.second.put_back(trained.second);
    }
}

impl HeldMoment {
    fn take(moment: &mut Moment) -> Self {
        match moment {
            Moment::Wide(tensor) => Self::Wide(whole::<f32>(float(taken(tensor)))),
            Moment::Codes(codes) => {
                let empty = Tensor::<1, Int>::empty([0], (&codes.codes.device(), DType::U8));
                let taken_codes = std::mem::replace(&mut codes.codes, empty);
                let primitive = taken_codes.try_into_primitive::<Flex>().expect("invariant: seen to be on burn-flex");
                Self::Codes(whole::<u8>(primitive), whole::<f32>(float(taken(&mut codes.scales))))
            }
        }
    }

    fn parts(&mut self, map: DynamicMap) -> Moments<'_> {
        match self {
            Self::Wide(tensor) => Moments::Wide(tensor.storage_mut()),
            Self::Codes(codes, scales) => {
                Moments::Codes { codes: codes.storage_mut(), scales: scales.storage_mut(), book: map.codebook() }
            }
        }
    }

    fn put_back(self, moment: &mut Moment) {
        match (self, moment) {
            (Self::Wide(held), Moment::Wide(tensor)) => *tensor = Tensor::from_primitive::<Flex>(held),
            (Self::Codes(held, scales), Moment::Codes(codes)) => {
                codes.codes = Tensor::from_primitive::<Flex>(held);
                codes.scales = Tensor::from_primitive::<Flex>(scales);
            }
            _ => unreachable!("invariant: taken from this moment"),
        }
    }
}

/// A stretch of values.
enum Values<'a> {
    Wide(&'a mut [f32]),
    Narrow(&'a mut [bf16]),
}

impl Values<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Wide(values) => values.len(),
            Self::Narrow(values) => values.len(),
        }
    }

    fn split(self, at: usize) -> (Self, Self) {
        match self {
            Self::Wide(values) => {
                let (head, tail) = values.split_at_mut(at);
                (Self::Wide(head), Self::Wide(tail))
            }
            Self::Narrow(values) => {
                let (head, tail) = values.split_at_mut(at);
                (Self::Narrow(head), Self::Narrow(tail))
            }
        }
    }
}

/// A stretch of a moment, from the first number of a block on.
enum Moments<'a> {
    Wide(&'a mut [f32]),
    Codes { codes: &'a mut [u8], scales: &'a mut [f32], book: &'static Codebook },
}

impl Moments<'_> {
    fn split(self, at: usize) -> (Self, Self) {
        match self {
            Self::Wide(values) => {
                let (head, tail) = values.split_at_mut(at);
                (Self::Wide(head), Self::Wide(tail))
            }
            Self::Codes { codes, scales, book } => {
                let (codes, codes_tail) = codes.split_at_mut(at);
                let (scales, scales_tail) = scales.split_at_mut(at.div_ceil(BLOCK));
                let head = Self::Codes { codes, scales, book };
                (head, Self::Codes { codes: codes_tail, scales: scales_tail, book })
            }
        }
    }

    /// The numbers of a block, decoded into `scratch` if they are codes.
    fn open<'a>(&'a mut self, block: usize, scratch: &'a mut [f32]) -> &'a mut [f32] {
        let range = block * BLOCK..block * BLOCK + scratch.len();
        match self {
            Self::Wide(values) => &mut values[range],
            Self::Codes { codes, scales, book } => {
                let scale = scales[block];
                for (out, code) in scratch.iter_mut().zip(&codes[range]) {
                    *out = book.numbers[usize::from(*code)] * scale;
                }
                scratch
            }
        }
    }

    /// Rounds what has become of the numbers of [`Moments::open`].
    fn close(&mut self, block: usize, scratch: &mut [f32]) {
        if let Self::Codes { codes, scales, book } = self {
            let scale = vector::max_abs(scratch).max(LEAST_SCALE);
            scales[block] = scale;
            vector::divide(scratch, scale);
            for (code, x) in codes[block * BLOCK..].iter_mut().zip(&*scratch) {
                *code = book.nearest(*x);
            }
        }
    }
}

/// A stretch of one tensor, from the first number of a block on.
struct Piece<'a> {
    value: Values<'a>,
    first: Moments<'a>,
    second: Moments<'a>,
    gradient: &'a [f32],
    numbers: &'a vector::AdamW,
    key: u64,
    /// Index of its first number.
    start: usize,
}

impl<'a> Piece<'a> {
    /// Pieces of as many blocks as one task should have.
    fn cut_into(mut self, pieces: &mut Vec<Self>) {
        let most = rows_per_task(BLOCK) * BLOCK;
        while self.value.len() > most {
            let (value, value_tail) = self.value.split(most);
            let (first, first_tail) = self.first.split(most);
            let (second, second_tail) = self.second.split(most);
            let (gradient, gradient_tail) = self.gradient.split_at(most);
            let Self { numbers, key, start, .. } = self;
            pieces.push(Self { value, first, second, gradient, numbers, key, start });
            self = Self {
                value: value_tail,
                first: first_tail,
                second: second_tail,
                gradient: gradient_tail,
                numbers,
                key,
                start: start + most,
            };
        }
        pieces.push(self);
    }

    fn update(mut self) {
        let mut scratch = [[0.0; BLOCK]; 3];
        for (block, gradient) in self.gradient.chunks(BLOCK).enumerate() {
            let [value, first, second] = scratch.each_mut().map(|row| &mut row[..gradient.len()]);
            let range = block * BLOCK..block * BLOCK + gradient.len();
            let values = match &mut self.value {
                Values::Wide(values) => &mut values[range.clone()],
                Values::Narrow(values) => {
                    vector::widen(value, &values[range.clone()]);
                    &mut *value
                }
            };
            vector::adamw(
                values,
                self.first.open(block, first),
                self.second.open(block, second),
                gradient,
                self.numbers,
            );
            if let Values::Narrow(values) = &mut self.value {
                let group = ((self.start + range.start) / 4) as u64;
                vector::narrow_at_random(&mut values[range], value, self.key, group);
            }
            self.first.close(block, first);
            self.second.close(block, second);
        }
    }
}
