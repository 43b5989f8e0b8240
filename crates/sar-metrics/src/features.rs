//! Feature vectors, one for each image.

use crate::MetricsError;

/// Rows of `dim` finite features, one for each image.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    dim: usize,
    values: Vec<f32>,
}

impl Features {
    /// No rows yet, for features of `dim` values.
    ///
    /// # Panics
    /// If `dim` is 0.
    pub fn new(dim: usize) -> Self {
        assert!(dim > 0, "features without a value");
        Self { dim, values: Vec::new() }
    }

    /// Rows of `dim` values, one after the other.
    ///
    /// # Errors
    /// If the last row is not whole, or a value is not finite.
    ///
    /// # Panics
    /// If `dim` is 0.
    pub fn from_rows(dim: usize, values: Vec<f32>) -> Result<Self, MetricsError> {
        let mut features = Self::new(dim);
        features.check(&values)?;
        features.values = values;
        Ok(features)
    }

    /// Adds rows, one after the other: all of them, or none if one is in error.
    ///
    /// # Errors
    /// If there are other than whole rows, or a value is not finite. Rows are counted over all of the set.
    pub fn push(&mut self, rows: &[f32]) -> Result<(), MetricsError> {
        self.check(rows)?;
        self.values.extend_from_slice(rows);
        Ok(())
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.values.len() / self.dim
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The number of features in a row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// One row.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.dim..(index + 1) * self.dim]
    }

    /// All rows, in order.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks_exact(self.dim)
    }

    /// All values, row after row.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The rows of these indices, in their order.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn select(&self, indices: impl IntoIterator<Item = usize>) -> Self {
        let values = indices.into_iter().flat_map(|index| self.row(index)).copied().collect();
        Self { dim: self.dim, values }
    }

    /// The mean of every column.
    pub(crate) fn mean(&self) -> Vec<f64> {
        mean(&self.values, self.dim)
    }

    fn check(&self, rows: &[f32]) -> Result<(), MetricsError> {
        if !rows.len().is_multiple_of(self.dim) {
            let (found, dim) = (rows.len(), self.dim);
            return Err(MetricsError::RowLength { what: "features", found, dim });
        }
        let Some(at) = rows.iter().position(|value| !value.is_finite()) else {
            return Ok(());
        };
        Err(MetricsError::NotFinite {
            what: "features",
            row: self.len() + at / self.dim,
            column: at % self.dim,
            value: rows[at].into(),
        })
    }
}

/// The mean of every column of rows; of no rows it is 0.
pub(crate) fn mean(values: &[f32], dim: usize) -> Vec<f64> {
    let mut mean = vec![0.0; dim];
    for row in values.chunks_exact(dim) {
        for (sum, value) in mean.iter_mut().zip(row) {
            *sum += f64::from(*value);
        }
    }
    let n = (values.len() / dim).max(1) as f64;
    mean.iter_mut().for_each(|sum| *sum /= n);
    mean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_out_as_they_went_in() {
        let mut features = Features::from_rows(2, vec![1.0, 2.0, 3.0, 4.0]).unwrap();
        features.push(&[5.0, 6.0]).unwrap();
        features.push(&[]).unwrap();
        assert_eq!((features.len(), features.dim(), features.is_empty()), (3, 2, false));
        assert_eq!(features.rows().collect::<Vec<_>>(), [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]);
        assert_eq!(features.select([2, 0, 2]).values(), [5.0, 6.0, 1.0, 2.0, 5.0, 6.0]);
        assert_eq!(features.mean(), [3.0, 4.0]);
        assert!(Features::new(3).is_empty());
    }

    #[test]
    fn a_row_in_error_is_named_and_changes_nothing() {
        let mut features = Features::from_rows(2, vec![1.0, 2.0]).unwrap();
        let error = features.push(&[3.0, 4.0, f32::INFINITY, 5.0]).unwrap_err();
        let value = f64::INFINITY;
        assert_eq!(error, MetricsError::NotFinite { what: "features", row: 2, column: 0, value });
        assert_eq!(
            error.to_string(),
            "features: row 2 has inf at 0; look at what made it, e.g. at that image or the weights"
        );
        let error = features.push(&[3.0]).unwrap_err();
        assert_eq!(error, MetricsError::RowLength { what: "features", found: 1, dim: 2 });
        assert_eq!(features.len(), 1);
        let error = Features::from_rows(2, vec![0.0, 1.0, 2.0, f32::NAN]).unwrap_err();
        assert!(matches!(error, MetricsError::NotFinite { row: 1, column: 1, .. }), "{error}");
    }
}
