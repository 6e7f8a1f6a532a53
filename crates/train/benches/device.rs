//! Every operation of a training step at the sizes of Qwen3-8B and Qwen3.5-4B on a device of any kind, a line of JSON for
//! each: seconds, and operations or bytes over them. `scripts/gpu.sh` sets them beside what the machine's own libraries
//! reach.
//!
//! `QWEN_TUNE_TEST_DEVICE` names the device (default `cpu`), `QWEN_TUNE_BENCH_TOKENS` the tokens of a forward (8,192), and
//! an argument takes only operations whose name holds it. Work is timed in groups, the device waited for at the end of each;
//! the median of the groups is told.

use std::time::Instant;

use burn::tensor::{DType, Device, Distribution, Tensor};
use qwen_tune_kernels as kernels;
use qwen_tune_kernels::{Adapter, Segments};
use qwen_tune_model::ComputeDtype;
use qwen_tune_train::device;
use serde_json::json;

/// Of Qwen3-8B.
const HIDDEN: usize = 4096;
const INNER: usize = 12288;
const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const HEAD: usize = 128;
const VOCABULARY: usize = 151_936;
const RANK: usize = 16;
/// Of Qwen3.5-4B's linear attention.
const KEY_HEADS: usize = 16;
const VALUE_HEADS: usize = 32;
/// Seconds for each operation, once its kernels are there.
const SECONDS: f64 = 0.5;
const GROUPS: usize = 5;

struct Bench {
    device: Device,
    dtype: DType,
    tokens: usize,
    filter: String,
}

/// What an operation does, to be put over its time.
#[derive(Clone, Copy)]
enum Work {
    Flops(f64),
    /// Read and written.
    Bytes(f64),
}

#[allow(clippy::print_stdout, reason = "a program of its own, whose output is its result")]
fn main() {
    let name = std::env::var("QWEN_TUNE_TEST_DEVICE").unwrap_or_else(|_| "cpu".to_owned());
    let open = match device::open(&name, ComputeDtype::Bf16).or_else(|_| device::open(&name, ComputeDtype::Auto)) {
        Ok(open) => open,
        Err(error) => {
            println!("{}", json!({ "device": name, "error": error.to_string() }));
            std::process::exit(1);
        }
    };
    let tokens = std::env::var("QWEN_TUNE_BENCH_TOKENS").ok().and_then(|text| text.parse().ok()).unwrap_or(8192);
    // Cargo gives every bench the argument `--bench`.
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with("--")).unwrap_or_default();
    let bench = Bench { device: open.device.clone(), dtype: open.dtype, tokens, filter };
    kernels::on_pool(|| bench.all());
}

impl Bench {
    fn draw<const D: usize>(&self, shape: [usize; D], dtype: DType) -> Tensor<D> {
        Tensor::<D>::random(shape, Distribution::Uniform(-0.1, 0.1), (&self.device, DType::F32)).cast(dtype)
    }

    fn element(&self) -> f64 {
        self.dtype.size() as f64
    }

    fn all(&self) {
        self.memory();
        self.products();
        self.attention();
        self.elementwise();
        self.linear_attention();
        self.head();
        self.blocks();
        self.routing();
        self.optimizer();
    }

    #[allow(clippy::print_stdout, reason = "a program of its own, whose output is its result")]
    fn time(&self, name: &str, work: Work, mut run: impl FnMut()) {
        if !name.contains(&self.filter) {
            return;
        }
        let wait = || self.device.sync().expect("the device answers");
        let cold = Instant::now();
        run();
        wait();
        let cold = cold.elapsed().as_secs_f64();
        let once = Instant::now();
        run();
        wait();
        let once = once.elapsed().as_secs_f64();
        let times = ((SECONDS / GROUPS as f64 / once) as usize).clamp(1, 200);
        let mut groups: Vec<f64> = (0..GROUPS)
            .map(|_| {
                let began = Instant::now();
                (0..times).for_each(|_| run());
                wait();
                began.elapsed().as_secs_f64() / times as f64
            })
            .collect();
        groups.sort_by(f64::total_cmp);
        let seconds = groups[GROUPS / 2];
        let mut line = json!({
            "op": name, "dtype": self.dtype.name(), "tokens": self.tokens, "seconds": seconds, "first_seconds": cold,
            "spread": (groups[GROUPS - 1] - groups[0]) / seconds,
        });
        match work {
            Work::Flops(flops) => line["tflops"] = json!(flops / seconds / 1e12),
            Work::Bytes(bytes) => line["gbps"] = json!(bytes / seconds / 1e9),
        }
        println!("{line}");
    }

    fn memory(&self) {
        let x = self.draw([self.tokens, INNER], self.dtype);
        let bytes = 2.0 * (self.tokens * INNER) as f64 * self.element();
        self.time("copy", Work::Bytes(bytes), || drop(x.clone().mul_scalar(1.5)));
    }

    /// The linear layers of a block: forward with adapter, and both gradients of a frozen weight's input.
    fn products(&self) {
        let layers = [
            ("q_proj", HIDDEN, HEADS * HEAD),
            ("k_proj", HIDDEN, KV_HEADS * HEAD),
            ("gate_proj", HIDDEN, INNER),
            ("down_proj", INNER, HIDDEN),
        ];
        for (name, inputs, outputs) in layers {
            let (x, weight) = (self.draw([self.tokens, inputs], self.dtype), self.draw([outputs, inputs], self.dtype));
            let flops = 2.0 * (self.tokens * inputs * outputs) as f64;
            self.time(&format!("product {name} {}x{inputs}x{outputs}", self.tokens), Work::Flops(flops), || {
                drop(kernels::linear(x.clone(), weight.clone(), None, None));
            });
            let (a, b) = (self.draw([RANK, inputs], DType::F32), self.draw([outputs, RANK], DType::F32));
            let adapter = || Adapter {
                a: a.clone().autodiff().require_grad(),
                b: b.clone().autodiff().require_grad(),
                scale: 2.0,
                dropout: None,
            };
            let upstream = self.draw([self.tokens, outputs], self.dtype);
            let both = 2.0 * flops + 6.0 * (self.tokens * RANK * (inputs + outputs)) as f64;
            self.time(&format!("adapted {name} forward and backward"), Work::Flops(both), || {
                let x = x.clone().autodiff().require_grad();
                let y = kernels::linear(x, weight.clone(), None, Some(adapter()));
                drop(kernels::seed(y, upstream.clone()).backward());
            });
        }
    }

    /// Rows of 2,048 tokens, packed one after another.
    fn attention(&self) {
        let length = self.tokens.min(2048);
        let segments = Segments::packed(&vec![length; self.tokens / length]);
        let heads = |heads: usize| self.draw([self.tokens, heads, HEAD], self.dtype);
        let (q, k, v, upstream) = (heads(HEADS), heads(KV_HEADS), heads(KV_HEADS), heads(HEADS));
        // Two products of the visible half of the scores.
        let flops = 2.0 * (self.tokens * HEADS * HEAD * length) as f64;
        let scale = (HEAD as f32).powf(-0.5);
        self.time("attention forward", Work::Flops(flops), || {
            drop(kernels::attention(q.clone(), k.clone(), v.clone(), &segments, scale, None));
        });
        self.time("attention forward and backward", Work::Flops(3.5 * flops), || {
            let [q, k, v] = [&q, &k, &v].map(|x| x.clone().autodiff().require_grad());
            let y = kernels::attention(q, k, v, &segments, scale, None);
            drop(kernels::seed(y, upstream.clone()).backward());
        });
    }

    fn elementwise(&self) {
        let element = self.element();
        let numbers = (self.tokens * HIDDEN) as f64 * element;
        let (x, upstream) =
            (self.draw([self.tokens, HIDDEN], self.dtype), self.draw([self.tokens, HIDDEN], self.dtype));
        let weight = self.draw([HIDDEN], DType::F32);
        self.time("rms_norm forward", Work::Bytes(2.0 * numbers), || {
            drop(kernels::rms_norm(x.clone(), weight.clone(), 1e-6, false));
        });
        self.time("rms_norm forward and backward", Work::Bytes(5.0 * numbers), || {
            let y = kernels::rms_norm(x.clone().autodiff().require_grad(), weight.clone(), 1e-6, false);
            drop(kernels::seed(y, upstream.clone()).backward());
        });
        self.time("residual", Work::Bytes(3.0 * numbers), || drop(kernels::add(x.clone(), upstream.clone())));
        let wide = || self.draw([self.tokens, INNER], self.dtype);
        let (gate, up, upstream) = (wide(), wide(), wide());
        let numbers = (self.tokens * INNER) as f64 * element;
        self.time("swiglu forward", Work::Bytes(3.0 * numbers), || drop(kernels::swiglu(gate.clone(), up.clone())));
        self.time("swiglu forward and backward", Work::Bytes(8.0 * numbers), || {
            let [gate, up] = [&gate, &up].map(|x| x.clone().autodiff().require_grad());
            drop(kernels::seed(kernels::swiglu(gate, up), upstream.clone()).backward());
        });
        let q = self.draw([self.tokens, HEADS, HEAD], self.dtype);
        let [cos, sin] = [0; 2].map(|_| self.draw([self.tokens, HEAD / 2], DType::F32));
        let numbers = (self.tokens * HEADS * HEAD) as f64 * element;
        let weight = self.draw([HEAD], DType::F32);
        self.time("norm_rope forward", Work::Bytes(2.0 * numbers), || {
            drop(kernels::norm_rope(q.clone(), weight.clone(), cos.clone(), sin.clone(), 1e-6, false));
        });
    }

    fn linear_attention(&self) {
        let length = self.tokens.min(2048);
        let segments = Segments::packed(&vec![length; self.tokens / length]);
        let channels = (2 * KEY_HEADS + VALUE_HEADS) * HEAD;
        let (x, weight) = (self.draw([self.tokens, channels], self.dtype), self.draw([channels, 4], self.dtype));
        let bytes = 2.0 * (self.tokens * channels) as f64 * self.element();
        self.time("causal_conv forward", Work::Bytes(bytes), || {
            drop(kernels::causal_conv(x.clone(), weight.clone(), None, &segments));
        });
        let heads = |heads: usize| self.draw([self.tokens, heads, HEAD], self.dtype);
        let (q, k, v, upstream) = (heads(KEY_HEADS), heads(KEY_HEADS), heads(VALUE_HEADS), heads(VALUE_HEADS));
        let gate = |low: f64, high: f64| {
            Tensor::<2>::random(
                [self.tokens, VALUE_HEADS],
                Distribution::Uniform(low, high),
                (&self.device, DType::F32),
            )
        };
        let (decay, beta) = (gate(-0.5, -0.01), gate(0.1, 0.9));
        // As scripts/model_flops.py counts the chunked form: the state's three products and those within a chunk of 64.
        let flops = (self.tokens * VALUE_HEADS) as f64 * (6 * HEAD * HEAD + 64 * 5 * HEAD + 64 * 64) as f64;
        self.time("gated_delta forward", Work::Flops(flops), || {
            drop(kernels::gated_delta(q.clone(), k.clone(), v.clone(), decay.clone(), beta.clone(), &segments));
        });
        self.time("gated_delta forward and backward", Work::Flops(3.0 * flops), || {
            let [q, k, v] = [&q, &k, &v].map(|x| x.clone().autodiff().require_grad());
            let y = kernels::gated_delta(q, k, v, decay.clone(), beta.clone(), &segments);
            drop(kernels::seed(y, upstream.clone()).backward());
        });
    }

    fn head(&self) {
        let (h, head) = (self.draw([self.tokens, HIDDEN], self.dtype), self.draw([VOCABULARY, HIDDEN], self.dtype));
        let targets: Vec<i32> = (0..self.tokens).map(|token| (token * 97 % VOCABULARY) as i32).collect();
        let weights = vec![1.0 / self.tokens as f32; self.tokens];
        let flops = 4.0 * (self.tokens * HIDDEN) as f64 * VOCABULARY as f64;
        self.time("head, loss and gradient", Work::Flops(flops), || {
            drop(kernels::head_loss(h.clone(), head.clone(), &targets, &weights));
        });
    }

    /// Blocks as GGUF files hold them, decoded for a product.
    fn blocks(&self) {
        for format in kernels::Ggml::ALL {
            let (length, size) = format.block();
            // Bytes whose scales are small numbers in every format.
            let bytes = vec![17; INNER * HIDDEN / length * size];
            let Some(packed) = format.on(&bytes, &self.device) else { return };
            let blocks = kernels::Blocks::new(packed.into(), [INNER, HIDDEN]);
            let moved = bytes.len() as f64 + (INNER * HIDDEN) as f64 * self.element();
            self.time(&format!("decode {}", format.name()), Work::Bytes(moved), || {
                drop(blocks.dense(&self.device, self.dtype));
            });
        }
    }

    /// Tokens to experts and back: eight choices each of Qwen3-30B-A3B.
    fn routing(&self) {
        const WIDTH: usize = 2048;
        const ACTIVE: usize = 8;
        let rows = self.tokens * ACTIVE;
        // As if each choice were an expert's.
        let row_of_choice = (0..rows).map(|choice| choice % ACTIVE * self.tokens + choice / ACTIVE).collect();
        let routes = kernels::Routes::new(row_of_choice, ACTIVE);
        let x = self.draw([self.tokens, WIDTH], self.dtype);
        let (spread, weights) = (self.draw([rows, WIDTH], self.dtype), self.draw([self.tokens, ACTIVE], DType::F32));
        let (small, large) = ((self.tokens * WIDTH) as f64 * self.element(), (rows * WIDTH) as f64 * self.element());
        self.time("spread forward and backward", Work::Bytes(2.0 * (small + large)), || {
            let y = kernels::spread(x.clone().autodiff().require_grad(), &routes);
            drop(kernels::seed(y, spread.clone()).backward());
        });
        self.time("combine forward and backward", Work::Bytes(3.0 * (small + large)), || {
            let [rows, weights] = [&spread, &weights].map(|x| x.clone().autodiff().require_grad());
            drop(kernels::seed(kernels::combine(rows, weights, &routes), x.clone()).backward());
        });
    }

    /// All adapters of Qwen3-8B at rank 16: as many tensors as it has.
    fn optimizer(&self) {
        const LAYERS: usize = 36;
        let pairs = [
            (HIDDEN, HEADS * HEAD),
            (HIDDEN, KV_HEADS * HEAD),
            (HIDDEN, KV_HEADS * HEAD),
            (HEADS * HEAD, HIDDEN),
            (HIDDEN, INNER),
            (HIDDEN, INNER),
            (INNER, HIDDEN),
        ];
        let lengths: Vec<usize> =
            (0..LAYERS).flat_map(|_| pairs).flat_map(|(inputs, outputs)| [RANK * inputs, RANK * outputs]).collect();
        let all = || lengths.iter().map(|&length| self.draw([length], DType::F32)).collect::<Vec<Tensor<1>>>();
        if !"norm of all gradients, norm and clipped adamw of all adapters".contains(&self.filter) {
            return;
        }
        let (mut values, gradients, mut first, mut second) = (all(), all(), all(), all());
        second.iter_mut().for_each(|v| *v = v.clone().abs());
        let bytes = 4.0 * lengths.iter().sum::<usize>() as f64;
        self.time("norm of all gradients", Work::Bytes(bytes), || {
            let _ = std::hint::black_box(kernels::global_norm(&gradients.iter().collect::<Vec<_>>()));
        });
        // What a step does: nothing of it waits for the device.
        self.time("norm and clipped adamw of all adapters", Work::Bytes(8.0 * bytes), || {
            let norm = kernels::Norm::of(&gradients.iter().collect::<Vec<_>>(), &[]);
            let moments = first.iter_mut().zip(&mut second);
            let mut trained: Vec<kernels::Trained<'_>> = values
                .iter_mut()
                .zip(&gradients)
                .zip(moments)
                .map(|((value, gradient), (first, second))| kernels::Trained {
                    value,
                    gradient,
                    first,
                    second,
                    weight_decay: 0.0,
                })
                .collect();
            let rule = kernels::AdamW { step: 10, learning_rate: 1e-6, beta1: 0.9, beta2: 0.999, eps: 1e-8, clip: 1.0 };
            kernels::adamw_clipped(&mut trained, &mut [], &rule, &norm, 1.0);
        });
    }
}
