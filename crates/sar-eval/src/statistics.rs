//! Mean and covariance of features in an `.npz` file: `mu` and `sigma`, of features of places `mu_s` and
//! `sigma_s`, as guided-diffusion's evaluator and pytorch-fid write and read them.

use std::io::Write;
use std::path::Path;

use npyz::WriterBuilder;
use sar_metrics::Moments;
use sar_weights::{WeightsError, write_whole};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

use crate::{EvalError, FeatureSet, Npz};

/// Reads the moments of a file; none where it has no `mu`.
///
/// # Errors
/// If the file cannot be read, or they are no mean and covariance.
pub fn read_statistics(path: &Path) -> Result<Option<FeatureSet>, EvalError> {
    let mut npz = Npz::open(path)?;
    let mut moments = |mean: &str, covariance: &str| -> Result<Option<Moments>, EvalError> {
        if !npz.has(mean) {
            return Ok(None);
        }
        let problem = |problem| EvalError::Npz { path: path.into(), problem };
        let values = npz.vector(mean)?;
        if values.is_empty() {
            return Err(problem(format!("{mean}: is empty")));
        }
        let moments = Moments::new(values, npz.matrix(covariance)?.values, None);
        moments.map(Some).map_err(|error| problem(error.to_string()))
    };
    let Some(pooled) = moments("mu", "sigma")? else { return Ok(None) };
    let places = moments("mu_s", "sigma_s")?;
    Ok(Some(FeatureSet::from_moments(pooled, places).hashed()))
}

/// Writes the moments of features; the same bytes for the same moments.
///
/// # Errors
/// If the file cannot be written.
pub fn write_statistics(path: &Path, set: &FeatureSet) -> Result<(), WeightsError> {
    write_whole(path, |file| {
        let failed = |error: std::io::Error| WeightsError::Write { path: path.into(), error };
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .last_modified_time(DateTime::default());
        let mut zip = ZipWriter::new(file);
        let mut write = |name: &str, shape: &[u64], values: &[f64]| -> std::io::Result<()> {
            zip.start_file(format!("{name}.npy"), options)?;
            let mut bytes = Vec::new();
            let mut array = npyz::WriteOptions::new()
                .default_dtype()
                .shape(shape)
                .writer(&mut bytes)
                .begin_nd()?;
            array.extend(values.iter().copied())?;
            array.finish()?;
            zip.write_all(&bytes)
        };
        for (moments, [mean, covariance]) in
            [(Some(set.moments()), ["mu", "sigma"]), (set.moments_of_places(), ["mu_s", "sigma_s"])]
        {
            let Some(moments) = moments else { continue };
            let dim = moments.dim() as u64;
            write(mean, &[dim], moments.mean()).map_err(failed)?;
            write(covariance, &[dim, dim], moments.covariance()).map_err(failed)?;
        }
        zip.finish().map_err(|error| failed(error.into()))?;
        Ok(())
    })
}
