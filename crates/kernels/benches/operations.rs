//! Each operation at the sizes of a 135M model (h 576, 9/3 heads of 64, f 1536, V 49152), 512 tokens: CPU form and
//! reference, forward alone and forward with backward; linear attention at those of Qwen3.5-4B; experts at sizes that are in the modules. `items` are floating-point operations, or elements where
//! memory is the limit.

use std::sync::Arc;

use burn::Tensor;
use burn::tensor::{Device, Distribution, Int};
use divan::Bencher;
use divan::counter::ItemsCount;
use qwen_tune_kernels::{
    Adapter, Groups, Segments, attention, causal_conv, gated_delta, gated_delta_step, gated_norm, grouped_linear,
    head_loss, linear, reference, rms_norm, rope, swiglu,
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

#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Fast,
    Reference,
}

impl std::fmt::Display for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if *self == Form::Fast { "fast" } else { "reference" })
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
            Form::Fast => linear(x, weight, None, adapter),
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

#[divan::bench_group]
mod norm {
    use super::*;

    fn apply(form: Form, x: Tensor<2>, weight: Tensor<1>) -> Tensor<2> {
        match form {
            Form::Fast => rms_norm(x, weight, 1e-6, false),
            Form::Reference => reference::rms_norm(x, weight, 1e-6, false),
        }
    }

    #[divan::bench(args = FORMS)]
    fn forward(bencher: Bencher, form: Form) {
        let (x, weight) = (draw([TOKENS, HIDDEN]), draw([HIDDEN]));
        bencher.counter(ItemsCount::new(TOKENS * HIDDEN)).bench_local(|| apply(form, x.clone(), weight.clone()));
    }

    #[divan::bench(args = FORMS)]
    fn backward(bencher: Bencher, form: Form) {
        let (x, weight, upstream) = (draw([TOKENS, HIDDEN]), draw([HIDDEN]), draw([TOKENS, HIDDEN]));
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
            Form::Fast => rope(x, cos, sin),
            Form::Reference => reference::rope(x, cos, sin),
        }
    }

    #[divan::bench(args = FORMS)]
    fn backward(bencher: Bencher, form: Form) {
        let x = draw([TOKENS, HEADS, SIZE]);
        let (cos, sin) = (draw([TOKENS, SIZE / 2]), draw([TOKENS, SIZE / 2]));
        let upstream = draw([TOKENS, HEADS, SIZE]);
        forward_backward(bencher.counter(ItemsCount::new(TOKENS * HEADS * SIZE)), &upstream, || {
            apply(form, tracked(&x), cos.clone(), sin.clone())
        });
    }
}

#[divan::bench_group]
mod gated_activation {
    use super::*;

    fn apply(form: Form, gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
        match form {
            Form::Fast => swiglu(gate, up),
            Form::Reference => reference::swiglu(gate, up),
        }
    }

    #[divan::bench(args = FORMS)]
    fn forward(bencher: Bencher, form: Form) {
        let (gate, up) = (draw([TOKENS, WIDE]), draw([TOKENS, WIDE]));
        bencher.counter(ItemsCount::new(TOKENS * WIDE)).bench_local(|| apply(form, gate.clone(), up.clone()));
    }

    #[divan::bench(args = FORMS)]
    fn backward(bencher: Bencher, form: Form) {
        let (gate, up, upstream) = (draw([TOKENS, WIDE]), draw([TOKENS, WIDE]), draw([TOKENS, WIDE]));
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

    fn operands() -> ([Tensor<3>; 3], Arc<Segments>) {
        let heads = |heads| draw([TOKENS, heads, SIZE]);
        ([heads(HEADS), heads(KV_HEADS), heads(KV_HEADS)], Segments::packed(&[TOKENS]))
    }

    fn apply(form: Form, [q, k, v]: [Tensor<3>; 3], segments: &Arc<Segments>) -> Tensor<3> {
        match form {
            Form::Fast => attention(q, k, v, segments, 0.125, None),
            Form::Reference => reference::attention(q, k, v, segments, 0.125, None),
        }
    }

    #[divan::bench(args = FORMS)]
    fn forward(bencher: Bencher, form: Form) {
        let (operands, segments) = operands();
        bencher.counter(ItemsCount::new(FLOPS)).bench_local(|| apply(form, operands.clone(), &segments));
    }

    #[divan::bench(args = FORMS)]
    fn backward(bencher: Bencher, form: Form) {
        let (operands, segments) = operands();
        let upstream = draw([TOKENS, HEADS, SIZE]);
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
            Form::Fast => head_loss(h.clone(), head.clone(), &targets, &weights),
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
        token_of_row: Tensor<1, Int>,
        row_of_choice: Tensor<1, Int>,
        weights: Tensor<3>,
    }

    impl Operands {
        /// Every expert has as many rows, its tokens far apart.
        fn draw(experts: usize) -> Self {
            let expert = |choice: usize| (choice / ACTIVE + choice % ACTIVE * experts / ACTIVE) % experts;
            let mut choice_of_row: Vec<usize> = (0..ROWS).collect();
            choice_of_row.sort_by_key(|&choice| expert(choice));
            let mut row_of_choice = vec![0; ROWS];
            (0..ROWS).for_each(|row| row_of_choice[choice_of_row[row]] = row as i32);
            let token_of_row: Vec<i32> = choice_of_row.iter().map(|&choice| (choice / ACTIVE) as i32).collect();
            let index = |rows: Vec<i32>| Tensor::from_ints(rows.as_slice(), &Device::flex());
            Self {
                x: draw([TOKENS, WIDTH]),
                gate_up: draw([experts, 2 * INNER, WIDTH]),
                down: draw([experts, WIDTH, INNER]),
                groups: Groups::of_counts(&vec![ROWS / experts; experts]),
                token_of_row: index(token_of_row),
                row_of_choice: index(row_of_choice),
                weights: draw([TOKENS, ACTIVE, 1]),
            }
        }

        /// What a sparse layer does behind its router.
        fn apply(&self, form: Form, x: &Tensor<2>) -> Tensor<2> {
            let map = |x: &Tensor<2>, weight: &Tensor<3>| match form {
                Form::Fast => grouped_linear(x, weight, &self.groups, None),
                Form::Reference => reference::grouped_linear(x, weight, &self.groups, None),
            };
            let both = map(&x.clone().select(0, self.token_of_row.clone()), &self.gate_up);
            let (gate, up) = (both.clone().narrow(1, 0, INNER), both.narrow(1, INNER, INNER));
            let inner = match form {
                Form::Fast => swiglu(gate, up),
                Form::Reference => reference::swiglu(gate, up),
            };
            let y: Tensor<3> =
                map(&inner, &self.down).select(0, self.row_of_choice.clone()).reshape([TOKENS, ACTIVE, WIDTH]);
            (y * self.weights.clone()).sum_dim(1).reshape([TOKENS, WIDTH])
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
                Form::Fast => causal_conv(x, weight, None, &segments),
                Form::Reference => reference::causal_conv(x, weight, None, &segments),
            }
        }

        #[divan::bench(args = FORMS)]
        fn forward(bencher: Bencher, form: Form) {
            let (x, weight) = (draw([TOKENS, CHANNELS]), draw([CHANNELS, 4]));
            bencher.counter(ItemsCount::new(TOKENS * CHANNELS)).bench_local(|| apply(form, x.clone(), weight.clone()));
        }

        #[divan::bench(args = FORMS)]
        fn backward(bencher: Bencher, form: Form) {
            let (x, weight, upstream) = (draw([TOKENS, CHANNELS]), draw([CHANNELS, 4]), draw([TOKENS, CHANNELS]));
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
                Form::Fast => gated_norm(x, z, weight, 1e-6),
                Form::Reference => reference::gated_norm(x, z, weight, 1e-6),
            }
        }

        #[divan::bench(args = FORMS)]
        fn forward(bencher: Bencher, form: Form) {
            let (x, z, weight) = (draw(SHAPE), draw(SHAPE), draw([HEAD]));
            let items = ItemsCount::new(TOKENS * VALUE_HEADS * HEAD);
            bencher.counter(items).bench_local(|| apply(form, x.clone(), z.clone(), weight.clone()));
        }

        #[divan::bench(args = FORMS)]
        fn backward(bencher: Bencher, form: Form) {
            let (x, z, weight, upstream) = (draw(SHAPE), draw(SHAPE), draw([HEAD]), draw(SHAPE));
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
            fn draw(tokens: usize, share: usize) -> Self {
                let heads = |heads| draw([tokens, heads / share, HEAD]);
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
                    Form::Fast => gated_delta(q, k, v, g, beta, &self.segments),
                    Form::Reference => reference::gated_delta(q, k, v, g, beta, &self.segments),
                }
            }

            fn upstream(&self) -> Tensor<3> {
                draw(self.heads[2].dims())
            }
        }

        #[divan::bench(args = FORMS)]
        fn forward(bencher: Bencher, form: Form) {
            let operands = Operands::draw(128, 4);
            bencher.bench_local(|| operands.apply(form));
        }

        #[divan::bench(args = FORMS)]
        fn backward(bencher: Bencher, form: Form) {
            let operands = Operands::draw(128, 4);
            forward_backward(bencher, &operands.upstream(), || operands.tracked().apply(form));
        }

        /// One token of generation.
        #[divan::bench(args = FORMS)]
        fn step(bencher: Bencher, form: Form) {
            let Operands { heads: [q, k, v], gates: [g, beta], .. } = Operands::draw(1, 1);
            let state = draw([VALUE_HEADS, HEAD, HEAD]);
            bencher.bench_local(|| {
                let [q, k, v, state] = [&q, &k, &v, &state].map(Tensor::clone);
                match form {
                    Form::Fast => gated_delta_step(state, q, k, v, g.clone(), beta.clone()),
                    Form::Reference => reference::gated_delta_step(state, q, k, v, g.clone(), beta.clone()),
                }
            });
        }

        /// What `scripts/bench_delta.py` gives torch.
        #[divan::bench]
        fn long_forward(bencher: Bencher) {
            let operands = Operands::draw(1024, 1);
            bencher.bench_local(|| operands.apply(Form::Fast));
        }

        #[divan::bench]
        fn long_backward(bencher: Bencher) {
            let operands = Operands::draw(1024, 1);
            forward_backward(bencher, &operands.upstream(), || operands.tracked().apply(Form::Fast));
        }
    }
}
