//! Each operation at the sizes of a 135M model (h 576, 9/3 heads of 64, f 1536, V 49152), 512 tokens: CPU form and
//! reference, forward alone and forward with backward; linear attention at those of Qwen3.5-4B; experts at sizes that are in the modules. `items` are floating-point operations, or elements where
//! memory is the limit.

use std::sync::Arc;

use burn::Tensor;
use burn::tensor::{DType, Device, Distribution};
use divan::Bencher;
use divan::counter::ItemsCount;
use qwen_tune_kernels::{
    Adapter, Blocks, Groups, Int8, Nf4, Packed, Routes, Segments, Weight, add, attention, causal_conv, combine,
    gated_delta, gated_delta_step, gated_norm, grouped_linear, head_loss, linear, norm_rope, reference, rms_norm, rope,
    sigmoid_gate, spread, swiglu, swiglu_joined,
};

const TOKENS: usize = 512;
const HIDDEN: usize = 576;
const WIDE: usize = 1536;
const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const SIZE: usize = 64;
const VOCABULARY: usize = 49152;
const RANK: usize = 16;
const FORMS: [Form; 2] = [Form::Fast, Form::Reference];
/// Of the operations whose CPU form takes bf16.
const ALL_FORMS: [Form; 3] = [Form::Fast, Form::Bf16, Form::Reference];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    /// The CPU form on f32 tensors.
    Fast,
    /// The CPU form on bf16 tensors.
    Bf16,
    Reference,
}

impl Form {
    /// A tensor as the form takes it.
    fn draw<const D: usize>(self, shape: [usize; D]) -> Tensor<D> {
        let tensor = draw(shape);
        if self == Form::Bf16 { tensor.cast(DType::BF16) } else { tensor }
    }
}

impl std::fmt::Display for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Form::Fast => "fast",
            Form::Bf16 => "fast, bf16",
            Form::Reference => "reference",
        })
    }
}

fn main() {
    divan::main();
}

fn draw<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Uniform(-1.0, 1.0), &Device::flex())
}

fn tracked<const D: usize>(tensor: &Tensor<D>) -> Tensor<D> {
    tensor.clone().autodiff().require_grad()
}

/// Times `f` on plain tensors, or with a tape and its backward pass.
fn forward_backward<const D: usize>(bencher: Bencher, upstream: &Tensor<D>, f: impl Fn() -> Tensor<D> + Sync) {
    bencher.bench_local(|| {
        let y = f();
        (y * upstream.clone()).backward()
    });
}

#[divan::bench_group]
mod lora_linear {
    use super::*;

    const FLOPS: usize = 2 * TOKENS * HIDDEN * WIDE;

    fn operands() -> (Tensor<2>, Tensor<2>, Tensor<2>, Tensor<2>) {
        (draw([TOKENS, HIDDEN]), draw([WIDE, HIDDEN]), draw([RANK, HIDDEN]), draw([WIDE, RANK]))
    }

    fn apply(form: Form, x: Tensor<2>, weight: Tensor<2>, a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
        let adapter = Some(Adapter { a, b, scale: 2.0, dropout: None });
        match form {
            Form::Fast | Form::Bf16 => linear(x, weight, None, adapter),
            Form::Reference => reference::linear(x, weight, None, adapter),
        }
    }

    #[divan::bench(args = FORMS)]
    fn forward(bencher: Bencher, form: Form) {
        let (x, weight, a, b) = operands();
        bencher
            .counter(ItemsCount::new(FLOPS))
            .bench_local(|| apply(form, x.clone(), weight.clone(), a.clone(), b.clone()));
    }

    #[divan::bench(args = FORMS)]
    fn backward(bencher: Bencher, form: Form) {
        let (x, weight, a, b) = operands();
        let upstream = draw([TOKENS, WIDE]);
        forward_backward(bencher.counter(ItemsCount::new(2 * FLOPS)), &upstream, || {
            apply(form, tracked(&x), weight.clone(), tracked(&a), tracked(&b))
        });
    }
}

/// A frozen weight by the form it is held in; decoding alone is in numbers.
#[divan::bench_group]
mod frozen_linear {
    use super::*;

    const FLOPS: usize = 2 * TOKENS * HIDDEN * WIDE;
    const HELD: [&str; 4] = ["f32", "bf16", "nf4", "int8"];

    fn packed(held: &str) -> Arc<dyn Packed> {
        let read = |_: usize, part: &mut [f32]| {
            part.iter_mut().enumerate().for_each(|(i, value)| *value = (i * 7919 % 1009) as f32 / 504.5 - 1.0);
            Ok::<(), std::convert::Infallible>(())
        };
        match held {
            "nf4" => Arc::new(Nf4::quantise(WIDE * HIDDEN, read).expect("nothing fails")),
            _ => Arc::new(Int8::quantise(WIDE, HIDDEN, read).expect("nothing fails")),
        }
    }

    fn weight(held: &str) -> Weight<2> {
        match held {
            "f32" => draw([WIDE, HIDDEN]).into(),
            "bf16" => draw([WIDE, HIDDEN]).cast(DType::BF16).into(),
            held => Blocks::new(packed(held), [WIDE, HIDDEN]).into(),
        }
    }

    #[divan::bench(args = HELD)]
    fn forward(bencher: Bencher, held: &str) {
        let (x, weight) = (draw([TOKENS, HIDDEN]), weight(held));
        bencher.counter(ItemsCount::new(FLOPS)).bench_local(|| linear(x.clone(), weight.clone(), None, None));
    }

    #[divan::bench(args = HELD)]
    fn backward(bencher: Bencher, held: &str) {
        let (x, weight, upstream) = (draw([TOKENS, HIDDEN]), weight(held), draw([TOKENS, WIDE]));
        forward_backward(bencher.counter(ItemsCount::new(2 * FLOPS)), &upstream, || {
            linear(tracked(&x), weight.clone(), None, None)
        });
    }

    #[divan::bench(args = ["nf4", "int8"])]
    fn decode(bencher: Bencher, held: &str) {
        let (packed, mut values) = (packed(held), vec![0.0; WIDE * HIDDEN]);
        bencher.counter(ItemsCount::new(values.len())).bench_local(|| packed.decode(0, &mut values));
    }
}

#[divan::bench_group]
mod norm {
    use super::*;

    fn apply(form: Form, x: Tensor<2>, weight: Tensor<1>) -> Tensor<2> {
        match form {
            Form::Fast | Form::Bf16 => rms_norm(x, weight, 1e-6, false),
            Form::Reference => reference::rms_norm(x, weight, 1e-6, false),
        }
    }

    #[divan::bench(args = ALL_FORMS)]
    fn forward(bencher: Bencher, form: Form) {
        let (x, weight) = (form.draw([TOKENS, HIDDEN]), draw([HIDDEN]));
        bencher.counter(ItemsCount::new(TOKENS * HIDDEN)).bench_local(|| apply(form, x.clone(), weight.clone()));
    }

    #[divan::bench(args = ALL_FORMS)]
    fn backward(bencher: Bencher, form: Form) {
        let (x, weight, upstream) = (form.draw([TOKENS, HIDDEN]), draw([HIDDEN]), form.draw([TOKENS, HIDDEN]));
        forward_backward(bencher.counter(ItemsCount::new(TOKENS * HIDDEN)), &upstream, || {
            apply(form, tracked(&x), weight.clone())
        });
    }
}

#[divan::bench_group]
mod rotation {
    use super::*;

    fn apply(form: Form, x: Tensor<3>, cos: Tensor<2>, sin: Tensor<2>) -> Tensor<3> {
        match form {
            Form::Fast | Form::Bf16 => rope(x, cos, sin),
            Form::Reference => reference::rope(x, cos, sin),
        }
    }

    #[divan::bench(args = ALL_FORMS)]
    fn backward(bencher: Bencher, form: Form) {
        let x = form.draw([TOKENS, HEADS, SIZE]);
        let (cos, sin) = (draw([TOKENS, SIZE / 2]), draw([TOKENS, SIZE / 2]));
        let upstream = form.draw([TOKENS, HEADS, SIZE]);
        forward_backward(bencher.counter(ItemsCount::new(TOKENS * HEADS * SIZE)), &upstream, || {
            apply(form, tracked(&x), cos.clone(), sin.clone())
        });
    }
}

/// Queries of Qwen3: the norm of every head, then its rotation; `fast` against the two operations one after the other, which
/// are the `reference` here.
#[divan::bench_group]
mod norm_and_rotation {
    use super::*;

    const SHAPE: [usize; 3] = [TOKENS, HEADS, SIZE];

    fn apply(form: Form, x: Tensor<3>, weight: Tensor<1>, [cos, sin]: [Tensor<2>; 2]) -> Tensor<3> {
        match form {
            Form::Fast | Form::Bf16 => norm_rope(x, weight, cos, sin, 1e-6, false),
            Form::Reference => rope(rms_norm(x, weight, 1e-6, false), cos, sin),
        }
    }

    #[divan::bench(args = ALL_FORMS)]
    fn forward(bencher: Bencher, form: Form) {
        let (x, weight, angles) = (form.draw(SHAPE), draw([SIZE]), [0; 2].map(|_| draw([TOKENS, SIZE / 2])));
        let items = ItemsCount::new(TOKENS * HEADS * SIZE);
        bencher.counter(items).bench_local(|| apply(form, x.clone(), weight.clone(), angles.clone()));
    }

    #[divan::bench(args = ALL_FORMS)]
    fn backward(bencher: Bencher, form: Form) {
        let (x, weight, angles) = (form.draw(SHAPE), draw([SIZE]), [0; 2].map(|_| draw([TOKENS, SIZE / 2])));
        forward_backward(bencher.counter(ItemsCount::new(TOKENS * HEADS * SIZE)), &form.draw(SHAPE), || {
            apply(form, tracked(&x), weight.clone(), angles.clone())
        });
    }
}

/// The sum into the second operand, as in a block, where nothing else holds it; the reference does so too where it can.
#[divan::bench_group]
mod residual {
    use super::*;

    fn bench(bencher: Bencher, form: Form, shape: [usize; 2]) {
        let x = form.draw(shape);
        let bencher = bencher.counter(ItemsCount::new(shape[0] * shape[1]));
        bencher.with_inputs(|| form.draw(shape)).bench_local_values(|y| match form {
            Form::Fast | Form::Bf16 => add(x.clone(), y),
            Form::Reference => reference::add(x.clone(), y),
        });
    }

    #[divan::bench(args = ALL_FORMS)]
    fn small(bencher: Bencher, form: Form) {
        bench(bencher, form, [TOKENS, HIDDEN]);
    }

    #[divan::bench(args = ALL_FORMS)]
    fn large(bencher: Bencher, form: Form) {
        bench(bencher, form, [2048, 1024]);
    }

    /// Burn's own sum of bf16.
    #[divan::bench]
    fn small_reference_bf16(bencher: Bencher) {
        let x = Form::Bf16.draw([TOKENS, HIDDEN]);
        let inputs = || Form::Bf16.draw([TOKENS, HIDDEN]);
        bencher.with_inputs(inputs).bench_local_values(|y| reference::add(x.clone(), y));
    }
}

/// The gate on the output of attention.
#[divan::bench_group]
mod output_gate {
    use super::*;

    const SHAPE: [usize; 3] = [TOKENS, HEADS, SIZE];

    fn apply(form: Form, x: Tensor<3>, gate: Tensor<3>) -> Tensor<3> {
        match form {
            Form::Fast | Form::Bf16 => sigmoid_gate(x, gate),
            Form::Reference => reference::sigmoid_gate(x, gate),
        }
    }

    #[divan::bench(args = ALL_FORMS)]
    fn forward(bencher: Bencher, form: Form) {
        let (x, gate) = (form.draw(SHAPE), form.draw(SHAPE));
        bencher.counter(ItemsCount::new(TOKENS * HEADS * SIZE)).bench_local(|| apply(form, x.clone(), gate.clone()));
    }

    #[divan::bench(args = ALL_FORMS)]
    fn backward(bencher: Bencher, form: Form) {
        let (x, gate, upstream) = (form.draw(SHAPE), form.draw(SHAPE), form.draw(SHAPE));
        forward_backward(bencher.counter(ItemsCount::new(TOKENS * HEADS * SIZE)), &upstream, || {
            apply(form, tracked(&x), tracked(&gate))
        });
    }
}

#[divan::bench_group]
mod gated_activation {
    use super::*;

    fn apply(form: Form, gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
        match form {
            Form::Fast | Form::Bf16 => swiglu(gate, up),
            Form::Reference => reference::swiglu(gate, up),
        }
    }

    #[divan::bench(args = ALL_FORMS)]
    fn forward(bencher: Bencher, form: Form) {
        let (gate, up) = (form.draw([TOKENS, WIDE]), form.draw([TOKENS, WIDE]));
        bencher.counter(ItemsCount::new(TOKENS * WIDE)).bench_local(|| apply(form, gate.clone(), up.clone()));
    }

    #[divan::bench(args = ALL_FORMS)]
    fn backward(bencher: Bencher, form: Form) {
        let (gate, up, upstream) = (form.draw([TOKENS, WIDE]), form.draw([TOKENS, WIDE]), form.draw([TOKENS, WIDE]));
        forward_backward(bencher.counter(ItemsCount::new(TOKENS * WIDE)), &upstream, || {
            apply(form, tracked(&gate), tracked(&up))
        });
    }
}

#[divan::bench_group]
mod causal_attention {
    use super::*;

    /// Multiply-adds of both products on the visible half of the scores, twice that for their gradients.
    const FLOPS: usize = 2 * 2 * HEADS * SIZE * TOKENS * TOKENS / 2;

    fn operands(form: Form) -> ([Tensor<3>; 3], Arc<Segments>) {
        let heads = |heads| form.draw([TOKENS, heads, SIZE]);
        ([heads(HEADS), heads(KV_HEADS), heads(KV_HEADS)], Segments::packed(&[TOKENS]))
    }

    fn apply(form: Form, [q, k, v]: [Tensor<3>; 3], segments: &Arc<Segments>) -> Tensor<3> {
        match form {
            Form::Fast | Form::Bf16 => attention(q, k, v, segments, 0.125, None),
            Form::Reference => reference::attention(q, k, v, segments, 0.125, None),
        }
    }

    #[divan::bench(args = ALL_FORMS)]
    fn forward(bencher: Bencher, form: Form) {
        let (operands, segments) = operands(form);
        bencher.counter(ItemsCount::new(FLOPS)).bench_local(|| apply(form, operands.clone(), &segments));
    }

    #[divan::bench(args = ALL_FORMS)]
    fn backward(bencher: Bencher, form: Form) {
        let (operands, segments) = operands(form);
        let upstream = form.draw([TOKENS, HEADS, SIZE]);
        forward_backward(bencher.counter(ItemsCount::new(3 * FLOPS)), &upstream, || {
            apply(form, operands.each_ref().map(tracked), &segments)
        });
    }
}

#[divan::bench_group(sample_count = 5, sample_size = 1)]
mod head {
    use super::*;

    #[divan::bench(args = FORMS)]
    fn loss_and_gradient(bencher: Bencher, form: Form) {
        let (h, head) = (draw([TOKENS, HIDDEN]), draw([VOCABULARY, HIDDEN]));
        let targets: Vec<i32> = (0..TOKENS).map(|token| (token * 97 % VOCABULARY) as i32).collect();
        let weights = [1.0 / TOKENS as f32; TOKENS];
        bencher.counter(ItemsCount::new(2 * 2 * TOKENS * HIDDEN * VOCABULARY)).bench_local(|| match form {
            Form::Fast | Form::Bf16 => head_loss(h.clone(), head.clone(), &targets, &weights),
            Form::Reference => reference::head_loss(h.clone(), head.clone(), &targets, &weights, false),
        });
    }
}

/// Frozen experts of 256 channels on 512 hidden ones, four a token: the same arithmetic however many there are, and ever fewer
/// rows for each weight that is read. `scripts/bench_experts.py` gives the same to transformers.
#[divan::bench_group(sample_count = 10, sample_size = 1)]
mod experts {
    use super::*;

    const WIDTH: usize = 512;
    const INNER: usize = 256;
    const ACTIVE: usize = 4;
    const ROWS: usize = TOKENS * ACTIVE;
    const FLOPS: usize = 2 * ROWS * 3 * INNER * WIDTH;

    struct Operands {
        x: Tensor<2>,
        gate_up: Tensor<3>,
        down: Tensor<3>,
        groups: Arc<Groups>,
        routes: Arc<Routes>,
        weights: Tensor<2>,
    }

    impl Operands {
        /// Every expert has as many rows, its tokens far apart.
        fn draw(experts: usize) -> Self {
            let expert = |choice: usize| (choice / ACTIVE + choice % ACTIVE * experts / ACTIVE) % experts;
            let mut choice_of_row: Vec<usize> = (0..ROWS).collect();
            choice_of_row.sort_by_key(|&choice| expert(choice));
            let mut row_of_choice = vec![0; ROWS];
            (0..ROWS).for_each(|row| row_of_choice[choice_of_row[row]] = row);
            Self {
                x: draw([TOKENS, WIDTH]),
                gate_up: draw([experts, 2 * INNER, WIDTH]),
                down: draw([experts, WIDTH, INNER]),
                groups: Groups::of_counts(&vec![ROWS / experts; experts]),
                routes: Routes::new(row_of_choice, ACTIVE),
                weights: draw([TOKENS, ACTIVE]),
            }
        }

        /// What a sparse layer does behind its router.
        fn apply(&self, form: Form, x: &Tensor<2>) -> Tensor<2> {
            if form == Form::Reference {
                let map = |x: &Tensor<2>, weight: &Tensor<3>| reference::grouped_linear(x, weight, &self.groups, None);
                let both = map(&reference::spread(x.clone(), &self.routes), &self.gate_up);
                let y = map(&reference::swiglu_joined(both), &self.down);
                return reference::combine(y, self.weights.clone(), &self.routes);
            }
            let map = |x: &Tensor<2>, weight: &Tensor<3>| grouped_linear(x.clone(), weight, &self.groups, None);
            let both = map(&spread(x.clone(), &self.routes), &self.gate_up);
            combine(map(&swiglu_joined(both), &self.down), self.weights.clone(), &self.routes)
        }
    }

    #[divan::bench(consts = [8, 16, 32, 64, 128], args = FORMS)]
    fn forward<const EXPERTS: usize>(bencher: Bencher, form: Form) {
        let operands = Operands::draw(EXPERTS);
        bencher.counter(ItemsCount::new(FLOPS)).bench_local(|| operands.apply(form, &operands.x));
    }

    #[divan::bench(consts = [8, 16, 32, 64, 128], args = FORMS)]
    fn backward<const EXPERTS: usize>(bencher: Bencher, form: Form) {
        let (operands, upstream) = (Operands::draw(EXPERTS), draw([TOKENS, WIDTH]));
        forward_backward(bencher.counter(ItemsCount::new(2 * FLOPS)), &upstream, || {
            operands.apply(form, &tracked(&operands.x))
        });
    }
}

/// Linear attention at the sizes of Qwen3.5-4B: 16 key heads, 32 value heads of 128.
mod linear_attention {
    use super::*;

    const KEY_HEADS: usize = 16;
    const VALUE_HEADS: usize = 32;
    const HEAD: usize = 128;
    const CHANNELS: usize = (2 * KEY_HEADS + VALUE_HEADS) * HEAD;

    #[divan::bench_group]
    mod convolution {
        use super::*;

        fn apply(form: Form, x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
            let segments = Segments::packed(&[TOKENS]);
            match form {
                Form::Fast | Form::Bf16 => causal_conv(x, weight, None, &segments),
                Form::Reference => reference::causal_conv(x, weight, None, &segments),
            }
        }

        #[divan::bench(args = ALL_FORMS)]
        fn forward(bencher: Bencher, form: Form) {
            let (x, weight) = (form.draw([TOKENS, CHANNELS]), draw([CHANNELS, 4]));
            bencher.counter(ItemsCount::new(TOKENS * CHANNELS)).bench_local(|| apply(form, x.clone(), weight.clone()));
        }

        #[divan::bench(args = ALL_FORMS)]
        fn backward(bencher: Bencher, form: Form) {
            let (x, weight, upstream) =
                (form.draw([TOKENS, CHANNELS]), draw([CHANNELS, 4]), form.draw([TOKENS, CHANNELS]));
            forward_backward(bencher.counter(ItemsCount::new(TOKENS * CHANNELS)), &upstream, || {
                apply(form, tracked(&x), weight.clone())
            });
        }
    }

    #[divan::bench_group]
    mod norm_and_gate {
        use super::*;

        const SHAPE: [usize; 3] = [TOKENS, VALUE_HEADS, HEAD];

        fn apply(form: Form, x: Tensor<3>, z: Tensor<3>, weight: Tensor<1>) -> Tensor<3> {
            match form {
                Form::Fast | Form::Bf16 => gated_norm(x, z, weight, 1e-6),
                Form::Reference => reference::gated_norm(x, z, weight, 1e-6),
            }
        }

        #[divan::bench(args = ALL_FORMS)]
        fn forward(bencher: Bencher, form: Form) {
            let (x, z, weight) = (form.draw(SHAPE), form.draw(SHAPE), draw([HEAD]));
            let items = ItemsCount::new(TOKENS * VALUE_HEADS * HEAD);
            bencher.counter(items).bench_local(|| apply(form, x.clone(), z.clone(), weight.clone()));
        }

        #[divan::bench(args = ALL_FORMS)]
        fn backward(bencher: Bencher, form: Form) {
            let (x, z, weight, upstream) = (form.draw(SHAPE), form.draw(SHAPE), draw([HEAD]), form.draw(SHAPE));
            forward_backward(bencher.counter(ItemsCount::new(TOKENS * VALUE_HEADS * HEAD)), &upstream, || {
                apply(form, tracked(&x), tracked(&z), weight.clone())
            });
        }
    }

    /// The reference keeps several states a token for its backward: more tokens or heads would not fit.
    #[divan::bench_group(sample_count = 10, sample_size = 1)]
    mod delta_rule {
        use super::*;

        struct Operands {
            heads: [Tensor<3>; 3],
            gates: [Tensor<2>; 2],
            segments: Arc<Segments>,
        }

        impl Operands {
            fn draw(form: Form, tokens: usize, share: usize) -> Self {
                let heads = |heads| form.draw([tokens, heads / share, HEAD]);
                let gate = || draw([tokens, VALUE_HEADS / share]);
                let heads = [heads(KEY_HEADS), heads(KEY_HEADS), heads(VALUE_HEADS)];
                Self { heads, gates: [gate() * 0.5 - 0.5, gate() * 0.5 + 0.5], segments: Segments::packed(&[tokens]) }
            }

            fn tracked(&self) -> Self {
                let (heads, gates) = (self.heads.each_ref().map(tracked), self.gates.each_ref().map(tracked));
                Self { heads, gates, segments: self.segments.clone() }
            }

            fn apply(&self, form: Form) -> Tensor<3> {
                let ([q, k, v], [g, beta]) = (self.heads.clone(), self.gates.clone());
                match form {
                    Form::Fast | Form::Bf16 => gated_delta(q, k, v, g, beta, &self.segments),
                    Form::Reference => reference::gated_delta(q, k, v, g, beta, &self.segments),
                }
            }

            fn upstream(&self, form: Form) -> Tensor<3> {
                form.draw(self.heads[2].dims())
            }
        }

        #[divan::bench(args = ALL_FORMS)]
        fn forward(bencher: Bencher, form: Form) {
            let operands = Operands::draw(form, 128, 4);
            bencher.bench_local(|| operands.apply(form));
        }

        #[divan::bench(args = ALL_FORMS)]
        fn backward(bencher: Bencher, form: Form) {
            let operands = Operands::draw(form, 128, 4);
            forward_backward(bencher, &operands.upstream(form), || operands.tracked().apply(form));
        }

        /// One token of generation.
        #[divan::bench(args = ALL_FORMS)]
        fn step(bencher: Bencher, form: Form) {
            let Operands { heads: [q, k, v], gates: [g, beta], .. } = Operands::draw(form, 1, 1);
            let state = draw([VALUE_HEADS, HEAD, HEAD]);
            bencher.bench_local(|| {
                let [q, k, v, state] = [&q, &k, &v, &state].map(Tensor::clone);
                match form {
                    Form::Fast | Form::Bf16 => gated_delta_step(state, q, k, v, g.clone(), beta.clone()),
                    Form::Reference => reference::gated_delta_step(state, q, k, v, g.clone(), beta.clone()),
                }
            });
        }

        /// What `scripts/bench_delta.py` gives torch.
        #[divan::bench(args = [Form::Fast, Form::Bf16])]
        fn long_forward(bencher: Bencher, form: Form) {
            let operands = Operands::draw(form, 1024, 1);
            bencher.bench_local(|| operands.apply(form));
        }

        #[divan::bench(args = [Form::Fast, Form::Bf16])]
        fn long_backward(bencher: Bencher, form: Form) {
            let operands = Operands::draw(form, 1024, 1);
            forward_backward(bencher, &operands.upstream(form), || operands.tracked().apply(form));
        }
    }
}
