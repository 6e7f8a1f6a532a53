//! The decoder: embedding, blocks, final norm, head, as separate public steps, so that the staged backward can run them
//! one at a time.

use std::ops::Range;

use burn::tensor::{DType, Device, IndexingUpdateOp, Int, Tensor, TensorData};
use qwen_tune_kernels as kernels;
use qwen_tune_qwen::memory;
use qwen_tune_qwen::spec::{DecoderSpec, FfnSpec, HeadSpec, LayerSpec, MixerSpec};
use qwen_tune_qwen::{ModelDir, TensorSpec};
use qwen_tune_weights::MappedBytes;

use crate::attention::Attention;
use crate::build::{BuildError, Builder};
use crate::context::Context;
use crate::frozen::Storage;
use crate::gated_delta::GatedDelta;
use crate::importance::Importance;
use crate::mlp::Mlp;
use crate::norm::RmsNorm;
use crate::parameters::{Matrix, Parameters, Pass};
use crate::sparse::Sparse;
use crate::training::Training;

/// A causal language model.
#[derive(Debug, Clone)]
pub struct Decoder {
    /// What it was built from.
    pub spec: DecoderSpec,
    embed_tokens: Matrix<2>,
    layers: Vec<Block>,
    norm: RmsNorm,
    lm_head: Option<Matrix<2>>,
    device: Device,
    dtype: DType,
}

/// Some of a model, to see in few of its tensors how all of it behaves.
#[derive(Debug, Clone, Default)]
pub struct ModelPart {
    /// Indices of blocks, in the order in which they run.
    pub blocks: Vec<usize>,
    /// Tokens whose rows of embedding and head are taken, which are known by their places in this list from then on; all
    /// where it is absent.
    pub vocabulary: Option<Vec<u32>>,
}

/// One pre-norm layer.
#[derive(Debug, Clone)]
pub struct Block {
    input_layernorm: RmsNorm,
    mixer: Mixer,
    post_attention_layernorm: RmsNorm,
    ffn: Ffn,
    /// What of mapped files its weights lie in, where they leave memory in between.
    pages: Vec<MappedBytes>,
}

#[expect(clippy::large_enum_variant, reason = "one a layer, for as long as the model lives")]
#[derive(Debug, Clone)]
enum Mixer {
    Attention(Attention),
    GatedDelta(GatedDelta),
}

#[expect(clippy::large_enum_variant, reason = "one a layer, for as long as the model lives")]
#[derive(Debug, Clone)]
enum Ffn {
    Dense(Mlp),
    Sparse(Sparse),
}

impl Block {
    fn new(at: &Builder<'_>, spec: &DecoderSpec, index: usize, layer: &LayerSpec) -> Result<Self, BuildError> {
        let hidden = spec.hidden_size;
        Ok(Self {
            input_layernorm: at.norm("input_layernorm", hidden, spec.norm)?,
            mixer: match &layer.mixer {
                MixerSpec::Attention(attention) => {
                    Mixer::Attention(Attention::new(&at.at("self_attn"), hidden, attention, index)?)
                }
                MixerSpec::GatedDelta(delta) => {
                    Mixer::GatedDelta(GatedDelta::new(&at.at("linear_attn"), hidden, delta, index)?)
                }
            },
            post_attention_layernorm: at.norm("post_attention_layernorm", hidden, spec.norm)?,
            ffn: match &layer.ffn {
                FfnSpec::Dense { inner, bias } => Ffn::Dense(Mlp::new(&at.at("mlp"), hidden, *inner, *bias)?),
                FfnSpec::Sparse(sparse) => Ffn::Sparse(Sparse::new(&at.at("mlp"), hidden, sparse)?),
            },
            pages: Vec::new(),
        })
    }

    /// Gives back what of its weights a file can bring again, where the model is held so: after a forward, which does it
    /// itself, and after a backward.
    pub fn give_back(&self) {
        self.pages.iter().for_each(MappedBytes::give_back);
    }

    /// Whether anything in it is trained.
    #[must_use]
    pub fn is_trained(&self) -> bool {
        let mixer = match &self.mixer {
            Mixer::Attention(attention) => attention.is_trained(),
            Mixer::GatedDelta(delta) => delta.is_trained(),
        };
        let ffn = match &self.ffn {
            Ffn::Dense(mlp) => mlp.is_trained(),
            Ffn::Sparse(sparse) => sparse.is_trained(),
        };
        mixer || ffn || self.input_layernorm.is_trained() || self.post_attention_layernorm.is_trained()
    }

    /// `h = x + mixer(norm(x))`, `y = h + ffn(norm(h))`; `[tokens, hidden]`. Without a tape the second in chunks, where the pass
    /// asks for them.
    #[must_use]
    pub fn forward(&self, x: Tensor<2>, context: &Context, pass: &Pass<'_>) -> Tensor<2> {
        let h = self.mix(x, context, pass);
        let parts = if pass.is_taped() { Vec::new() } else { self.ffn_parts(h.dims()[0], pass.ffn_chunk) };
        if parts.len() < 2 {
            let y = self.feed_forward(h, pass);
            self.give_back();
            return y;
        }
        let part = |rows: Range<usize>| {
            self.feed_forward(h.clone().narrow(0, rows.start, rows.len()), &pass.from_token(rows.start))
        };
        let parts = parts.into_iter().map(part).collect();
        drop(h);
        self.give_back();
        Tensor::cat(parts, 0)
    }

    /// `x + mixer(norm(x))`: what the feed-forward part adds to.
    #[must_use]
    pub fn mix(&self, x: Tensor<2>, context: &Context, pass: &Pass<'_>) -> Tensor<2> {
        let normed = self.input_layernorm.forward(x.clone(), pass);
        let change = match &self.mixer {
            Mixer::Attention(attention) => attention.forward(normed, context, pass),
            Mixer::GatedDelta(delta) => delta.forward(normed, context, pass),
        };
        kernels::add(x, change)
    }

    /// `h + ffn(norm(h))`, each row by itself.
    #[must_use]
    pub fn feed_forward(&self, h: Tensor<2>, pass: &Pass<'_>) -> Tensor<2> {
        let normed = self.post_attention_layernorm.forward(h.clone(), pass);
        let change = match &self.ffn {
            Ffn::Dense(mlp) => mlp.forward(normed, pass),
            Ffn::Sparse(sparse) => sparse.forward(normed, pass),
        };
        kernels::add(h, change)
    }

    /// Tokens that go through the feed-forward part together: equal shares of at most `chunk`, in order. All of them where
    /// experts drop inputs, whose masks go by the rows of an expert.
    #[must_use]
    pub fn ffn_parts(&self, tokens: usize, chunk: Option<usize>) -> Vec<Range<usize>> {
        let splits = match &self.ffn {
            Ffn::Dense(_) => true,
            Ffn::Sparse(sparse) => !sparse.drops_in_experts(),
        };
        let size = memory::chunk_share(tokens as u64, chunk.filter(|_| splits).map(|chunk| chunk as u64)) as usize;
        (0..tokens).step_by(size.max(1)).map(|first| first..tokens.min(first + size)).collect()
    }

    /// Scores of the experts for each token, `[tokens, experts]`, where the layer has experts.
    #[must_use]
    pub fn router_logits(&self, x: Tensor<2>, context: &Context, pass: &Pass<'_>) -> Option<Tensor<2>> {
        match &self.ffn {
            Ffn::Dense(_) => None,
            Ffn::Sparse(sparse) => {
                let normed = self.post_attention_layernorm.forward(self.mix(x, context, pass), pass);
                Some(sparse.router_logits(normed, pass))
            }
        }
    }
}

impl Decoder {
    /// Loads the checkpoint onto `device`, tensor by tensor; `storage` says how weights of products are held.
    ///
    /// # Errors
    /// If a tensor cannot be read or does not fit.
    pub fn load(
        model: &ModelDir,
        training: &Training,
        device: &Device,
        storage: impl Into<Storage>,
    ) -> Result<(Self, Parameters), BuildError> {
        let storage = storage.into();
        let whole = ModelPart { blocks: (0..model.spec.layers.len()).collect(), vocabulary: None };
        let importance = Importance::measure(model, device, storage)?;
        Self::load_rounded(model, &whole, training, device, storage, &importance)
    }

    /// As [`Decoder::load`], a part of the model only: its specification is that of a model which is nothing more. What it
    /// quantises is rounded without regard to what the rest of the model makes of it.
    ///
    /// # Errors
    /// As [`Decoder::load`].
    pub fn load_part(
        model: &ModelDir,
        part: &ModelPart,
        training: &Training,
        device: &Device,
        storage: impl Into<Storage>,
    ) -> Result<(Self, Parameters), BuildError> {
        Self::load_rounded(model, part, training, device, storage.into(), &Importance::default())
    }

    fn load_rounded(
        model: &ModelDir,
        part: &ModelPart,
        training: &Training,
        device: &Device,
        storage: Storage,
        importance: &Importance,
    ) -> Result<(Self, Parameters), BuildError> {
        let vocabulary = part.vocabulary.as_deref();
        let stored = [model.spec.vocab_size, model.spec.hidden_size];
        let spec = DecoderSpec {
            layers: part.blocks.iter().map(|&block| model.spec.layers[block].clone()).collect(),
            vocab_size: vocabulary.map_or(model.spec.vocab_size, <[u32]>::len),
            ..model.spec.clone()
        };
        Builder::build(model, training, device, storage, importance, |at| {
            let block = |(index, &block): (usize, &usize)| -> Result<Block, BuildError> {
                let made = Block::new(&at.at("layers").at(block), &spec, index, &spec.layers[index])?;
                let mine = |tensor: &&TensorSpec| tensor.layer == Some(block) && storage.gives_back;
                let pages = |tensor| storage.pages_of(model, tensor, device);
                Ok(Block { pages: model.inventory.iter().filter(mine).flat_map(pages).collect(), ..made })
            };
            Ok(Self {
                embed_tokens: at.at("embed_tokens").rows("weight", stored, vocabulary)?,
                layers: part.blocks.iter().enumerate().map(block).collect::<Result<_, _>>()?,
                norm: at.norm("norm", spec.hidden_size, spec.norm)?,
                lm_head: match spec.head {
                    HeadSpec::Tied => None,
                    HeadSpec::Own => Some(at.at("lm_head").rows("weight", stored, vocabulary)?),
                },
                spec: spec.clone(),
                device: device.clone(),
                dtype: storage.dtype,
            })
        })
    }

    /// The same with these of its blocks only, by index and in this order; weights are shared.
    #[must_use]
    pub fn with_blocks(&self, blocks: &[usize]) -> Self {
        Self {
            spec: DecoderSpec {
                layers: blocks.iter().map(|&block| self.spec.layers[block].clone()).collect(),
                ..self.spec.clone()
            },
            layers: blocks.iter().map(|&block| self.layers[block].clone()).collect(),
            ..self.clone()
        }
    }

    /// Where it lives.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The blocks, bottom first.
    #[must_use]
    pub fn blocks(&self) -> &[Block] {
        &self.layers
    }

    /// Context of a batch of sequences given as (start, length) on the flat token axis.
    #[must_use]
    pub fn context(&self, sequences: &[(usize, usize)], positions: &[u32]) -> Context {
        Context::new(&self.spec.rope, sequences, positions, &self.device)
    }

    /// Rows of the embedding, `[tokens, hidden]`, in the number format of the model's products.
    #[must_use]
    pub fn embed(&self, ids: &[u32], pass: &Pass<'_>) -> Tensor<2> {
        match &self.embed_tokens {
            Matrix::Packed(rows) => rows.rows(ids, &self.device, self.dtype),
            Matrix::Dense(weight) => pass.get(weight).select(0, self.index(ids)).cast(self.dtype),
        }
    }

    /// Gradient of a trained embedding, flat in f32, from that of [`Decoder::embed`]: rows of a token that occurs several
    /// times are added in f32, whatever the embedding is held in.
    #[must_use]
    pub fn embedding_gradient(&self, ids: &[u32], upstream: Tensor<2>) -> Tensor<1> {
        let [rows, hidden] = [self.spec.vocab_size, self.spec.hidden_size];
        let sums = Tensor::<2>::zeros([rows, hidden], (&self.device, DType::F32));
        let sums = sums.select_assign(0, self.index(ids), upstream.cast(DType::F32), IndexingUpdateOp::Add);
        sums.reshape([rows * hidden])
    }

    fn index(&self, ids: &[u32]) -> Tensor<1, Int> {
        let ids: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
        let count = ids.len();
        Tensor::from_data(TensorData::new(ids, [count]), &self.device)
    }

    /// The final norm.
    #[must_use]
    pub fn finish(&self, x: Tensor<2>, pass: &Pass<'_>) -> Tensor<2> {
        self.norm.forward(x, pass).into_tensor()
    }

    /// The head's weight `[vocab, hidden]`; the embedding's own where they are tied.
    #[must_use]
    pub fn head(&self) -> &Matrix<2> {
        self.lm_head.as_ref().unwrap_or(&self.embed_tokens)
    }

    /// The embedding's weight `[vocab, hidden]`.
    #[must_use]
    pub fn embedding(&self) -> &Matrix<2> {
        &self.embed_tokens
    }

    /// Embedding, blocks and final norm in one go: `[tokens, hidden]`.
    #[must_use]
    pub fn hidden(&self, ids: &[u32], context: &Context, pass: &Pass<'_>) -> Tensor<2> {
        let embedded = self.embed(ids, pass);
        let x = self.layers.iter().fold(embedded, |x, block| block.forward(x, context, pass));
        self.finish(x, pass)
    }

    /// Scores over the vocabulary in f32, `[tokens, vocab]`: for generation and tests; training never forms them.
    #[must_use]
    pub fn logits(&self, hidden: Tensor<2>, pass: &Pass<'_>) -> Tensor<2> {
        kernels::linear(hidden.cast(DType::F32), pass.matrix(self.head()), None, None)
    }
}
