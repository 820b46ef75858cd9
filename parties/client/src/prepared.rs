//! A request between its two ends: split into shares, not yet answered.

use tercet_net::{InputShare, OutputShare};
use zeroize::Zeroizing;

use crate::face::Table;
use crate::input::{self, Batch};
use crate::{Error, Inputs, ModelFace, Options, open, share};

/// A request as it is sent: one share for each node. Good for one run; another try prepares another one.
pub struct Prepared {
    batch: Batch,
    shares: [InputShare; 3],
}

impl ModelFace {
    /// Splits inputs into requests, ready to be sent: what [`crate::Client`] does before it asks the nodes. `table` are the
    /// bytes of the public table, where the model has one.
    ///
    /// # Errors
    /// An input is not one that the model takes; the table is missing or of another size.
    pub fn prepare(&self, inputs: Inputs<'_>, options: &Options, table: Option<&[u8]>) -> Result<Vec<Prepared>, Error> {
        let batches = input::batches(self, inputs, options)?;
        batches.into_iter().map(|batch| Prepared::new(self, batch, table)).collect()
    }

    /// Splits the rows of tokens that go into a generation together: its prompt, or one more token.
    ///
    /// # Errors
    /// The model takes no tokens; the table is missing or of another size.
    pub fn share_rows(&self, ids: &[u32], table: Option<&[u8]>) -> Result<[InputShare; 3], Error> {
        let count = self.interface().output_width;
        if let Some(at) = ids.iter().position(|id| *id as usize >= count) {
            return Err(Error::Misuse(format!("the token at place {} is none of the {count} that there are", at + 1)));
        }
        let table = table.map(|bytes| Table::new(self, bytes)).transpose()?;
        share::rows(self, Zeroizing::new(ids.to_vec()), table.as_ref())
    }

    /// Opens the answer to a request: one vector for each of its inputs, in the order of [`Prepared::places`].
    ///
    /// # Errors
    /// A share has another length than it should; two copies of a component differ.
    pub fn open(&self, request: &Prepared, answer: &[OutputShare; 3]) -> Result<Vec<Vec<f32>>, Error> {
        open::open(self.interface(), &request.batch.real_rows(), answer)
    }
}

impl Prepared {
    pub(crate) fn new(face: &ModelFace, batch: Batch, table: Option<&[u8]>) -> Result<Self, Error> {
        let table = table.map(|bytes| Table::new(face, bytes)).transpose()?;
        let shares = share::split(face, &batch, table.as_ref())?;
        Ok(Self { batch, shares })
    }

    /// What P0, P1 and P2 get.
    pub fn shares(&self) -> &[InputShare; 3] {
        &self.shares
    }

    /// Which of the inputs are in this request, in its order.
    pub fn places(&self) -> &[usize] {
        &self.batch.places
    }

    /// Inputs side by side.
    pub fn len(&self) -> usize {
        self.batch.inputs.len()
    }

    /// Whether there is no input.
    pub fn is_empty(&self) -> bool {
        self.batch.inputs.is_empty()
    }

    /// Rows of each input, padding included.
    pub fn rows(&self) -> usize {
        self.batch.rows
    }
}

/// The shares together are the input: a debug print shows their shape.
impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Prepared[{} x {}]", self.len(), self.rows())
    }
}
