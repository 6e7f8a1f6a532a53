//! [`TensorType`]: how the elements of a tensor are stored; [`GgufTensor`]: its name, shape and type.

use std::fmt;

/// Declares the types with their id, elements of a block and bytes of a block.
macro_rules! tensor_types {
    ($($name:ident = $id:literal, $block:literal in $bytes:literal;)*) => {
        /// Element types of GGUF tensors. Quantised types store rows in blocks of a fixed number of elements.
        ///
        /// Every type is known by its size; [`super::blocks`] says which ones it can read and write as numbers. Ids and
        /// sizes: `ggml_type` of ggml. Types that ggml only computes with (`Q8_1`, `Q8_K`) do not occur in files.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[allow(missing_docs, non_camel_case_types, reason = "each variant is its name")]
        pub enum TensorType {
            $($name,)*
        }

        impl TensorType {
            /// Every variant.
            pub const ALL: &[TensorType] = &[$(TensorType::$name),*];

            /// The number that stands for the type in files.
            pub const fn id(self) -> u32 {
                match self { $(TensorType::$name => $id),* }
            }

            /// The name ggml uses, such as `Q4_K`.
            pub const fn name(self) -> &'static str {
                match self { $(TensorType::$name => stringify!($name)),* }
            }

            /// Elements of one block; 1 for a type without blocks.
            pub const fn block(self) -> usize {
                match self { $(TensorType::$name => $block),* }
            }

            /// Bytes of one block.
            pub const fn block_bytes(self) -> usize {
                match self { $(TensorType::$name => $bytes),* }
            }
        }
    };
}

tensor_types! {
    F32 = 0, 1 in 4;
    F16 = 1, 1 in 2;
    BF16 = 30, 1 in 2;
    F64 = 28, 1 in 8;
    I8 = 24, 1 in 1;
    I16 = 25, 1 in 2;
    I32 = 26, 1 in 4;
    I64 = 27, 1 in 8;
    Q4_0 = 2, 32 in 18;
    Q4_1 = 3, 32 in 20;
    Q5_0 = 6, 32 in 22;
    Q5_1 = 7, 32 in 24;
    Q8_0 = 8, 32 in 34;
    Q1_0 = 41, 128 in 18;
    Q2_K = 10, 256 in 84;
    Q3_K = 11, 256 in 110;
    Q4_K = 12, 256 in 144;
    Q5_K = 13, 256 in 176;
    Q6_K = 14, 256 in 210;
    IQ1_S = 19, 256 in 50;
    IQ1_M = 29, 256 in 56;
    IQ2_XXS = 16, 256 in 66;
    IQ2_XS = 17, 256 in 74;
    IQ2_S = 22, 256 in 82;
    IQ3_XXS = 18, 256 in 98;
    IQ3_S = 21, 256 in 110;
    IQ4_NL = 20, 32 in 18;
    IQ4_XS = 23, 256 in 136;
    TQ1_0 = 34, 256 in 54;
    TQ2_0 = 35, 256 in 66;
    MXFP4 = 39, 32 in 17;
    NVFP4 = 40, 64 in 36;
}

impl TensorType {
    /// The type of this id, if it is one.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|ty| ty.id() == id)
    }

    /// The type of this name, if it is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|ty| ty.name() == name)
    }

    /// Bytes of a row of `row` elements; `None` where that is no whole number of blocks or too many bytes.
    pub fn row_bytes(self, row: usize) -> Option<usize> {
        if !row.is_multiple_of(self.block()) {
            return None;
        }
        (row / self.block()).checked_mul(self.block_bytes())
    }

    /// Bytes of a tensor of this row-major shape; `None` where its rows are no whole number of blocks or it is too large.
    pub fn bytes(self, shape: &[usize]) -> Option<usize> {
        let (&row, outer) = shape.split_last().unwrap_or((&1, &[]));
        outer.iter().try_fold(self.row_bytes(row)?, |product, &extent| product.checked_mul(extent))
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A tensor of a GGUF file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensor {
    /// Name in the file.
    pub name: String,
    /// Extent of each axis, outermost first, as everywhere in this crate; the file holds them innermost first.
    pub shape: Vec<usize>,
    /// How elements are stored.
    pub ty: TensorType,
}

impl GgufTensor {
    /// Puts the three together.
    pub fn new(name: impl Into<String>, shape: impl Into<Vec<usize>>, ty: TensorType) -> Self {
        Self { name: name.into(), shape: shape.into(), ty }
    }

    /// Elements of the innermost axis; 1 for a scalar.
    pub fn row(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Number of elements. Saturates, as [`crate::TensorInfo::elements`] does.
    pub fn elements(&self) -> usize {
        self.shape.iter().fold(1, |product, &extent| product.saturating_mul(extent))
    }

    /// Number of bytes; `None` as for [`TensorType::bytes`].
    pub fn bytes(&self) -> Option<usize> {
        self.ty.bytes(&self.shape)
    }
}
