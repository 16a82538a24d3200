//! What does a safetensors file hold under a name: numbers, or labels? Whole numbers keep all their digits either way.

use std::cmp::Ordering;
use std::path::Path;

use anyhow::{Result, bail};
use headscope::Error;
use ndarray::Array2;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

/// float64 represents every whole number up to this one exactly.
const EXACT: i128 = 1 << 53;

/// An array `[sample, dimension]`.
pub(super) struct Array<'a> {
    name: &'a str,
    samples: usize,
    dimensions: usize,
    values: Values,
}

enum Values {
    Floating(Vec<f64>),
    Whole(Vec<i128>),
}

impl<'a> Array<'a> {
    /// Reads the array called `name`. An array of shape `[sample]` has one dimension.
    pub(super) fn read(tensors: &SafeTensors, name: &'a str, file: &Path) -> Result<Self> {
        let Ok(tensor) = tensors.tensor(name) else {
            let mut names = tensors.names();
            names.sort_unstable();
            bail!("{}: there is no array `{name}`; expected one of {}", file.display(), names.join(", "));
        };
        let (samples, dimensions) = match *tensor.shape() {
            [samples] => (samples, 1),
            [samples, dimensions] => (samples, dimensions),
            ref other => bail!("{name}: expected shape [sample, dimension] or [sample], found {other:?}"),
        };
        Ok(Self { name, samples, dimensions, values: Values::read(name, &tensor)? })
    }

    /// The values as float64. Whole numbers beyond 2^53 are taken relative to the smallest of their column, a shift
    /// that affects no estimator.
    pub(super) fn numbers(&self) -> Result<Array2<f64>> {
        let values = match &self.values {
            Values::Floating(values) => values.clone(),
            Values::Whole(values) => self.exact(values)?,
        };
        Ok(Array2::from_shape_vec((self.samples, self.dimensions), values)?)
    }

    fn exact(&self, values: &[i128]) -> Result<Vec<f64>> {
        let mut first = vec![0; self.dimensions];
        for (column, first) in first.iter_mut().enumerate() {
            let of_column = || values.iter().skip(column).step_by(self.dimensions);
            let (Some(&least), Some(&most)) = (of_column().min(), of_column().max()) else { continue };
            if least < -EXACT || most > EXACT {
                *first = least;
            }
            if most - *first > EXACT {
                let at = self.name;
                bail!(Error::Argument {
                    name: "array",
                    expected: format!(
                        "whole numbers in column {column} of {at} that lie within 2^53 of each other, or --labels"
                    ),
                    found: format!("{least} to {most}"),
                });
            }
        }
        Ok(values.iter().enumerate().map(|(i, value)| (value - first[i % self.dimensions]) as f64).collect())
    }

    /// One label for each distinct row, numbered from 0 in the order of the rows.
    ///
    /// Fails if a value is not a whole number: continuous values are not labels.
    pub(super) fn labels(&self) -> Result<Vec<usize>> {
        match &self.values {
            Values::Whole(values) => Ok(ranks(values, self.samples, self.dimensions)),
            Values::Floating(values) => {
                if let Some((index, found)) = values.iter().enumerate().find(|(_, value)| value.fract() != 0.0) {
                    let at = self.name;
                    bail!(Error::Argument {
                        name: "labels",
                        expected: format!("whole numbers or booleans in {at} (continuous values are not labels)"),
                        found: format!("{found} at index {index}"),
                    });
                }
                Ok(ranks(values, self.samples, self.dimensions))
            }
        }
    }
}

impl Values {
    fn read(name: &str, tensor: &TensorView) -> Result<Self> {
        macro_rules! read {
            ($type:ty) => {
                tensor
                    .data()
                    .chunks_exact(size_of::<$type>())
                    .filter_map(|bytes| bytes.try_into().ok())
                    .map(<$type>::from_le_bytes)
            };
        }
        Ok(match tensor.dtype() {
            Dtype::F64 => Self::Floating(read!(f64).collect()),
            Dtype::F32 => Self::Floating(read!(f32).map(f64::from).collect()),
            Dtype::F16 => Self::Floating(read!(half::f16).map(f64::from).collect()),
            Dtype::BF16 => Self::Floating(read!(half::bf16).map(f64::from).collect()),
            Dtype::I64 => Self::Whole(read!(i64).map(i128::from).collect()),
            Dtype::I32 => Self::Whole(read!(i32).map(i128::from).collect()),
            Dtype::I16 => Self::Whole(read!(i16).map(i128::from).collect()),
            Dtype::I8 => Self::Whole(read!(i8).map(i128::from).collect()),
            Dtype::U64 => Self::Whole(read!(u64).map(i128::from).collect()),
            Dtype::U32 => Self::Whole(read!(u32).map(i128::from).collect()),
            Dtype::U16 => Self::Whole(read!(u16).map(i128::from).collect()),
            Dtype::U8 => Self::Whole(read!(u8).map(i128::from).collect()),
            Dtype::BOOL => Self::Whole(read!(u8).map(|byte| i128::from(byte != 0)).collect()),
            other => bail!("{name}: expected floating-point numbers, whole numbers or booleans, found {other}"),
        })
    }
}

/// The rank of each row among the distinct rows, in lexicographic order.
fn ranks<T: PartialOrd>(values: &[T], samples: usize, width: usize) -> Vec<usize> {
    let row = |row: usize| &values[row * width..][..width];
    let mut order: Vec<usize> = (0..samples).collect();
    order.sort_unstable_by(|&a, &b| row(a).partial_cmp(row(b)).unwrap_or(Ordering::Equal));
    let (mut ranks, mut rank) = (vec![0; samples], 0);
    for pair in order.windows(2) {
        rank += usize::from(row(pair[0]) != row(pair[1]));
        ranks[pair[1]] = rank;
    }
    ranks
}
