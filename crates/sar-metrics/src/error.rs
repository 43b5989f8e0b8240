//! Why a measure cannot be taken.

/// A one-line message: which argument, what is wrong with it, what to do.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum MetricsError {
    /// Values that do not make whole rows.
    #[error("{what}: {found} values make no rows of {dim}; give every row {dim} values")]
    RowLength {
        /// What has the rows, e.g. `"features"`.
        what: &'static str,
        /// The values that were given.
        found: usize,
        /// The values of a row.
        dim: usize,
    },
    /// A value that is infinite or no number.
    #[error(
        "{what}: row {row} has {value} at {column}; look at what made it, e.g. at that image or the weights"
    )]
    NotFinite {
        /// What has the row, e.g. `"features"`.
        what: &'static str,
        /// The row, from 0.
        row: usize,
        /// The place in the row, from 0.
        column: usize,
        /// The value.
        value: f64,
    },
    /// Two arguments that have unlike numbers of features.
    #[error(
        "{what}: {found} features a row, but {expected} in {other}; compare features of one network alone"
    )]
    Dimension {
        /// The argument, e.g. `"generated"`.
        what: &'static str,
        /// Its features a row.
        found: usize,
        /// What it is compared with, e.g. `"the reference"`.
        other: &'static str,
        /// Features a row of that.
        expected: usize,
    },
    /// Fewer rows than the measure needs.
    #[error("{what}: {found} rows, but {purpose} takes {needed} at least; give more images")]
    TooFewRows {
        /// The argument, e.g. `"generated"`.
        what: &'static str,
        /// Its rows.
        found: usize,
        /// The rows that are needed.
        needed: usize,
        /// What they are needed for, e.g. `"a covariance"`.
        purpose: &'static str,
    },
    /// A number of neighbors that cannot be: 0, or more than there are.
    #[error(
        "k = {k}: there are 1 to {available} neighbors here; choose such a k or give more images"
    )]
    NeighborCount {
        /// The number asked for.
        k: usize,
        /// The largest that can be.
        available: usize,
    },
    /// As many labels as rows are needed.
    #[error("{labels} labels for {rows} rows; give one label a row")]
    LabelCount {
        /// The labels that were given.
        labels: usize,
        /// The rows.
        rows: usize,
    },
    /// A label that is no class.
    #[error("row {row} has the label {label}: classes are 0 to {}; check the labels", classes - 1)]
    Label {
        /// The row, from 0.
        row: usize,
        /// Its label.
        label: usize,
        /// The number of classes.
        classes: usize,
    },
    /// A covariance that is not as large as its mean asks for.
    #[error("covariance: {found} values for {dim} features; give {dim} x {dim} of them")]
    CovarianceSize {
        /// The values that were given.
        found: usize,
        /// The features of the mean.
        dim: usize,
    },
    /// A matrix that is no covariance.
    #[error("covariance: {problem} in row {row}, column {column}; check where it comes from")]
    Covariance {
        /// The row, from 0.
        row: usize,
        /// The column, from 0.
        column: usize,
        /// What is wrong there.
        problem: &'static str,
    },
    /// A matrix that is no covariance, because it is not positive semi-definite.
    #[error(
        "covariance: has a negative eigenvalue, below -1e-6 of its trace; check where it comes from"
    )]
    Indefinite,
    /// A row that is no distribution.
    #[error(
        "probabilities: row {row} has {problem}; give softmaxes, or logits to `inception_score`"
    )]
    Probabilities {
        /// The row, from 0.
        row: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A setting outside of its range.
    #[error("{what} is {value}; choose {range}")]
    Setting {
        /// The setting.
        what: &'static str,
        /// Its value.
        value: f64,
        /// What it may be.
        range: &'static str,
    },
    /// Held-out images that are no measure of a distance.
    #[error(
        "half of the held-out images are training images; hold out others, or remove duplicates from the training set"
    )]
    HeldOutIsTraining,
    /// A decomposition that does not come to an end, because numbers are too large.
    #[error("{what} cannot be decomposed: its numbers are out of range; scale the features down")]
    Decomposition {
        /// The matrix.
        what: &'static str,
    },
}

/// That two arguments have as many features a row.
pub(crate) fn same_dim(
    (what, found): (&'static str, usize),
    (other, expected): (&'static str, usize),
) -> Result<(), MetricsError> {
    if found == expected {
        return Ok(());
    }
    Err(MetricsError::Dimension { what, found, other, expected })
}

/// That an argument has as many rows as are needed.
pub(crate) fn enough_rows(
    what: &'static str,
    found: usize,
    needed: usize,
    purpose: &'static str,
) -> Result<(), MetricsError> {
    if found >= needed {
        return Ok(());
    }
    Err(MetricsError::TooFewRows { what, found, needed, purpose })
}
