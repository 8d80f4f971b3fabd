//! Weights in the form in which transformers and bitsandbytes store NF4: the codes under the
//! weight's name, and beside them `.absmax`, `.quant_map`, with double quantization
//! `.nested_absmax` and `.nested_quant_map`, and `.quant_state.bitsandbytes__nf4`, a JSON object as
//! bytes.

use safetensors::Dtype;
use serde::Deserialize;

use super::error::WeightsError;
use super::read::WeightFiles;
use crate::kernels::nf4::{CODE_BOOK, NestedScales, Packed, Scales};

const STATE: &str = ".quant_state.bitsandbytes__nf4";
/// Other types that bitsandbytes stores in the same way.
const STATE_PREFIX: &str = ".quant_state.";
const PARTS: [&str; 4] = [".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"];

/// The JSON object in the state of a quantized weight, the keys that are read.
#[derive(Debug, Deserialize)]
struct State {
    blocksize: usize,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f32>,
}

/// Whether a tensor is a part of a quantized weight beside its codes.
pub(in crate::model) fn is_part(name: &str) -> bool {
    name.contains(STATE_PREFIX) || PARTS.iter().any(|part| name.ends_with(part))
}

impl WeightFiles {
    /// A tensor that is stored in NF4; `None` if it is stored as numbers.
    ///
    /// # Errors
    /// A part is missing or damaged, or has a size or a value that is not supported.
    pub fn read_nf4(&self, name: &str, shape: &[usize]) -> Result<Option<Packed>, WeightsError> {
        let parts = Parts { files: self, name };
        let Some(state) = parts.bytes(STATE)? else {
            return match self
                .names()
                .find(|other| other.starts_with(&format!("{name}{STATE_PREFIX}")))
            {
                Some(other) => Err(parts.refused(format!("`{other}`: only nf4 is supported"))),
                None => Ok(None),
            };
        };
        let state: State =
            serde_json::from_slice(&state).map_err(|error| parts.refused(error.to_string()))?;
        if state.shape != shape {
            let (path, name) = (parts.path(), name.to_owned());
            let (found, expected) = (state.shape, shape.to_vec());
            return Err(WeightsError::Shape { path, name, found, expected });
        }
        if parts.floats(".quant_map")? != CODE_BOOK {
            return Err(parts.refused("its `quant_map` is not the code book of nf4".into()));
        }
        let scales = parts.scales(&state)?;
        let codes = parts.needed("")?;
        let packed = Packed::from_parts(shape.iter().product(), state.blocksize, codes, scales);
        packed.map(Some).map_err(|error| parts.refused(error.to_string()))
    }
}

/// The parts of one quantized weight.
struct Parts<'a> {
    files: &'a WeightFiles,
    name: &'a str,
}

impl Parts<'_> {
    fn path(&self) -> std::path::PathBuf {
        self.files.path_of(self.name).map(Into::into).unwrap_or_default()
    }

    fn refused(&self, reason: String) -> WeightsError {
        WeightsError::Quantized { path: self.path(), name: self.name.to_owned(), reason }
    }

    fn bytes(&self, part: &str) -> Result<Option<Vec<u8>>, WeightsError> {
        let found = self.files.bytes_of(&format!("{}{part}", self.name))?;
        Ok(found.map(|(_, bytes)| bytes))
    }

    fn needed(&self, part: &str) -> Result<Vec<u8>, WeightsError> {
        let missing = || self.refused(format!("`{}{part}` is missing", self.name));
        self.bytes(part)?.ok_or_else(missing)
    }

    /// A part of finite float32 numbers.
    fn floats(&self, part: &str) -> Result<Vec<f32>, WeightsError> {
        let bytes = self.needed(part)?;
        let (chunks, rest) = bytes.as_chunks::<4>();
        let floats: Vec<f32> = chunks.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        match rest.is_empty() && floats.iter().all(|x| x.is_finite()) {
            true => Ok(floats),
            false => Err(self.refused(format!("`{part}` does not hold finite float32 numbers"))),
        }
    }

    fn scales(&self, state: &State) -> Result<Scales, WeightsError> {
        let absmax = self.files.bytes_of(&format!("{}.absmax", self.name))?;
        let Some((Dtype::U8, codes)) = absmax else {
            return Ok(Scales::Float(self.floats(".absmax")?));
        };
        let (Some(block), Some(offset)) = (state.nested_blocksize, state.nested_offset) else {
            return Err(self.refused("`nested_blocksize` or `nested_offset` is missing".into()));
        };
        Ok(Scales::Nested(NestedScales {
            codes,
            absmax: self.floats(".nested_absmax")?,
            map: self.floats(".nested_quant_map")?,
            offset,
            block,
        }))
    }
}
