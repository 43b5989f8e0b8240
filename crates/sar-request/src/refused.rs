//! Why a request is not carried out.

use sar_pipeline::PipelineError;

/// A request that cannot be carried out as it is, and why in one sentence.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

impl Refused {
    pub(crate) fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

impl From<PipelineError> for Refused {
    fn from(error: PipelineError) -> Self {
        Self(error.to_string())
    }
}
