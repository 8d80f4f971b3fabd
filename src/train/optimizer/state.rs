//! The state of an optimizer in checkpoints: named vectors of whole parameters, which ranks share
//! in pieces.

use std::borrow::Cow;

use burn::tensor::{DType, Tensor, TensorData};
use safetensors::{Dtype, View};
use serde::{Deserialize, Serialize};

use super::{Moments, Optimizer};
use crate::kernels::update::FactoredMeans;
use crate::model::decoder::Decoder;
use crate::model::parameter::{Parameter, ParameterId};
use crate::parallel::Ranks;
use crate::parallel::buckets::Piece;
use crate::recipe::Optim;

/// A vector of the state of a parameter. A checkpoint names it `first.<parameter>` and so on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum StateKind {
    /// Running mean of the gradients.
    First,
    /// Running mean of their squares.
    Second,
    /// The weights in float32.
    Master,
    /// Adafactor's means of the rows of a matrix.
    Rows,
    /// Adafactor's means of the columns of a matrix.
    Columns,
}

const STATE_KINDS: [StateKind; 5] =
    [StateKind::First, StateKind::Second, StateKind::Master, StateKind::Rows, StateKind::Columns];

/// The name of a vector of the state: its parameter and its kind.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct VectorKey {
    parameter: ParameterId,
    kind: StateKind,
}

/// A vector of the state that rank 0 writes.
pub struct StateVector<'a> {
    optimizer: &'a Optimizer,
    ranks: &'a Ranks,
    key: VectorKey,
    shape: [usize; 1],
}

impl Optimizer {
    /// The state as named vectors of whole parameters, `first.<parameter>`, `second.<parameter>`,
    /// `master.<parameter>`, `rows.<parameter>`, `columns.<parameter>`, for rank 0 to write. Each is
    /// gathered when it is written, so that rank 0 holds at most one of them beyond its own share.
    /// Meanwhile the other ranks are in [`Self::hand_over`].
    pub fn vectors<'a>(
        &'a self,
        model: &'a Decoder,
        ranks: &'a Ranks,
    ) -> Vec<(String, StateVector<'a>)> {
        let mut vectors = Vec::new();
        for parameter in model.parameters().into_iter().filter(|p| p.trainable) {
            for kind in self.kinds(parameter) {
                let key = VectorKey { parameter: parameter.id, kind };
                let shape = [kind.len_of(parameter)];
                let state = StateVector { optimizer: self, ranks, key, shape };
                vectors.push((kind.name_of(parameter), state));
            }
        }
        vectors
    }

    /// Sends rank 0 the vectors that it requests, until it has them all.
    pub fn hand_over(&self, ranks: &Ranks) {
        while let Some(key) = requested(ranks, None) {
            self.gather(key, ranks);
        }
    }

    /// Lets the other ranks leave [`Self::hand_over`].
    pub fn all_written(&self, ranks: &Ranks) {
        if !ranks.is_alone() {
            requested(ranks, None);
        }
    }

    fn gather(&self, key: VectorKey, ranks: &Ranks) -> Vec<u8> {
        let mut own = Vec::new();
        for moments in self.moments.iter().flatten() {
            if moments.piece.parameter == key.parameter
                && let Some(vector) = moments.vector(key.kind)
            {
                match vector.dims()[0] {
                    0 => own.resize(own.len() + moments.piece.len * size_of::<f32>(), 0),
                    _ => own.extend_from_slice(vector.clone().into_data().as_bytes()),
                }
            }
        }
        if ranks.is_alone() { own } else { ranks.gather_to_first("optimizer state", &own).concat() }
    }

    /// A vector of Adafactor's means, which every rank has whole.
    fn factored_vector(&self, key: VectorKey) -> Option<&[f32]> {
        let means = self.factored.get(key.parameter.index())?.as_ref()?;
        match (means, key.kind) {
            (FactoredMeans::Matrix { rows, .. }, StateKind::Rows) => Some(rows),
            (FactoredMeans::Matrix { columns, .. }, StateKind::Columns) => Some(columns),
            (FactoredMeans::Vector(means), StateKind::Second) => Some(means),
            _ => None,
        }
    }

    /// Replaces the float32 weights of this rank's share by those that `read` gives, the values of
    /// whole parameters. [`Self::new`] takes them from the model, which has fewer bits.
    ///
    /// # Errors
    /// The first error of `read`.
    pub fn set_masters<E>(
        &mut self,
        model: &Decoder,
        read: impl Fn(&Parameter) -> Result<Option<Vec<f32>>, E>,
    ) -> Result<(), E> {
        let parameters = model.parameters();
        for moments in self.moments.iter_mut().flatten() {
            let Piece { parameter, start, len, .. } = moments.piece;
            let Some(master) = &mut moments.master else { continue };
            if let Some(mut values) = read(parameters[parameter.index()])? {
                values.truncate(start + len);
                let own = TensorData::new(values.split_off(start), [len]);
                *master = Tensor::from_data(own, (&master.device(), DType::F32));
            }
        }
        Ok(())
    }

    /// Updates done so far.
    pub fn updates(&self) -> i32 {
        self.step
    }

    /// Restores this rank's share of the state that [`Self::vectors`] named, after `updates`
    /// updates. `read(name, piece, whole)` gives the piece of a vector of `whole` elements.
    ///
    /// # Errors
    /// The name of the first vector that is missing or has another length.
    pub fn restore(
        &mut self,
        model: &Decoder,
        updates: i32,
        read: impl Fn(&str, Piece, usize) -> Option<Tensor<1>>,
    ) -> Result<(), String> {
        self.step = updates;
        let parameters = model.parameters();
        let kinds: Vec<Vec<StateKind>> = parameters.iter().map(|p| self.kinds(p)).collect();
        for moments in self.moments.iter_mut().flatten() {
            let piece = moments.piece;
            let parameter = parameters[piece.parameter.index()];
            for kind in &kinds[piece.parameter.index()] {
                let is_factored = !self.factored.is_empty() && *kind != StateKind::Master;
                if let (Some(slot), false) = (moments.vector_mut(*kind), is_factored) {
                    let name = kind.name_of(parameter);
                    *slot = read(&name, piece, parameter.len()).ok_or(name)?;
                }
            }
        }
        for (parameter, means) in parameters.into_iter().zip(&mut self.factored) {
            let vector = |kind: StateKind| -> Result<Vec<f32>, String> {
                let (name, len) = (kind.name_of(parameter), kind.len_of(parameter));
                let whole = Piece { parameter: parameter.id, start: 0, len, at: 0 };
                let vector = read(&name, whole, len).ok_or(name)?;
                Ok(vector.into_data().try_into_vec::<f32>().expect("the state is float32"))
            };
            match means {
                None => {}
                Some(FactoredMeans::Matrix { rows, columns }) => {
                    (*rows, *columns) = (vector(StateKind::Rows)?, vector(StateKind::Columns)?);
                }
                Some(FactoredMeans::Vector(means)) => *means = vector(StateKind::Second)?,
            }
        }
        Ok(())
    }

    /// The kinds of vectors that the state of a parameter has, before the first update too.
    fn kinds(&self, parameter: &Parameter) -> Vec<StateKind> {
        let is_factored = self.kind == Optim::Adafactor;
        let [first, second] = self.kind.running_means(&self.sgd);
        let is_matrix = parameter.shape.len() == 2;
        let has = |kind: &StateKind| match kind {
            StateKind::First => first,
            StateKind::Second if is_factored => !is_matrix,
            StateKind::Second => second,
            StateKind::Master => parameter.value.dtype() != DType::F32,
            StateKind::Rows | StateKind::Columns => is_factored && is_matrix,
        };
        STATE_KINDS.into_iter().filter(has).collect()
    }
}

impl View for StateVector<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        if let Some(vector) = self.optimizer.factored_vector(self.key) {
            return Cow::Borrowed(bytemuck::cast_slice(vector));
        }
        if !self.ranks.is_alone() {
            requested(self.ranks, Some(self.key));
        }
        Cow::Owned(self.optimizer.gather(self.key, self.ranks))
    }

    fn data_len(&self) -> usize {
        self.shape[0] * 4
    }
}

/// Rank 0's next request, on every rank: the vector that it wants, or none if it needs no more.
/// `own` is rank 0's request; the other ranks' is not read.
fn requested(ranks: &Ranks, own: Option<VectorKey>) -> Option<VectorKey> {
    let request: Result<_, std::convert::Infallible> = ranks.decide("the next vector", || Ok(own));
    let Ok(request) = request;
    request
}

impl StateKind {
    fn name_of(self, parameter: &Parameter) -> String {
        let kind = match self {
            Self::First => "first",
            Self::Second => "second",
            Self::Master => "master",
            Self::Rows => "rows",
            Self::Columns => "columns",
        };
        format!("{kind}.{}", parameter.name)
    }

    /// Elements of the whole vector of a parameter.
    fn len_of(self, parameter: &Parameter) -> usize {
        match self {
            Self::First | Self::Second | Self::Master => parameter.len(),
            Self::Rows => parameter.shape[0],
            Self::Columns => parameter.shape[1],
        }
    }
}

impl Moments {
    fn vector(&self, kind: StateKind) -> Option<&Tensor<1>> {
        match kind {
            StateKind::First => Some(&self.first),
            StateKind::Second => Some(&self.second),
            StateKind::Master => self.master.as_ref(),
            StateKind::Rows | StateKind::Columns => None,
        }
    }

    fn vector_mut(&mut self, kind: StateKind) -> Option<&mut Tensor<1>> {
        match kind {
            StateKind::First => Some(&mut self.first),
            StateKind::Second => Some(&mut self.second),
            StateKind::Master => self.master.as_mut(),
            StateKind::Rows | StateKind::Columns => None,
        }
    }
}
