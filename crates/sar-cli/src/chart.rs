//! Line charts as SVG.

use anyhow::Result;
use plotters::coord::Shift;
use plotters::prelude::*;

/// A part of a picture.
pub(crate) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A line through points, left to right.
#[derive(Clone, Debug)]
pub(crate) struct Curve {
    pub(crate) name: String,
    pub(crate) color: RGBColor,
    pub(crate) points: Vec<(f64, f64)>,
}

/// What the horizontal axis shows.
pub(crate) struct Horizontal<'l> {
    pub(crate) name: &'l str,
    /// How many labels, about.
    pub(crate) labels: usize,
    /// The label at a place.
    pub(crate) label: &'l dyn Fn(f64) -> String,
}

/// A curve of so few points shows them.
const MARKED: usize = 12;

const COLORS: [RGBColor; 12] = [
    RGBColor(31, 92, 168),
    RGBColor(204, 85, 41),
    RGBColor(46, 139, 87),
    RGBColor(136, 71, 153),
    RGBColor(120, 120, 120),
    RGBColor(214, 158, 20),
    RGBColor(24, 160, 170),
    RGBColor(190, 50, 90),
    RGBColor(110, 150, 40),
    RGBColor(60, 60, 60),
    RGBColor(150, 110, 70),
    RGBColor(120, 150, 230),
];

/// The color of the `i`-th thing; after twelve they come again.
pub(crate) fn color(i: usize) -> RGBColor {
    COLORS[i % COLORS.len()]
}

/// Draws curves that have a point at least, all together; nothing where there is none.
pub(crate) fn draw<'c>(
    area: &Area<'_>,
    title: Option<&str>,
    x: &Horizontal<'_>,
    curves: impl Iterator<Item = &'c Curve> + Clone,
) -> Result<()> {
    let points = || curves.clone().flat_map(|curve| &curve.points);
    let (mut left, mut right) = ends(points().map(|point| point.0));
    let (low, high) = ends(points().map(|point| point.1));
    if low > high {
        return Ok(());
    }
    if left == right {
        (left, right) = (left - 0.5, right + 0.5);
    }
    let margin = 0.05 * (high - low).max(1e-6);
    // One digit behind the point for a range of 1 to 10, more for smaller ones.
    let digits = (1.0 - (high - low).max(1e-6).log10()).ceil().clamp(0.0, 6.0) as usize;
    let mut builder = ChartBuilder::on(area);
    builder.margin(12).x_label_area_size(32).y_label_area_size(52);
    if let Some(title) = title {
        builder.caption(title, ("sans-serif", 14));
    }
    let mut chart = builder.build_cartesian_2d(left..right, low - margin..high + margin)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.1))
        .axis_style(BLACK.mix(0.4))
        .x_desc(x.name)
        .x_labels(x.labels)
        .x_label_formatter(&|at: &f64| (x.label)(*at))
        .y_label_formatter(&|y| format!("{y:.digits$}"))
        .draw()?;
    for Curve { color, points, .. } in curves {
        chart.draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(2)))?;
        // What is measured now and then shows where.
        if points.len() <= MARKED {
            chart.draw_series(points.iter().map(|&point| Circle::new(point, 3, color.filled())))?;
        }
    }
    Ok(())
}

/// The smallest and the largest value.
fn ends(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let of = |(low, high): (f64, f64), value: f64| (low.min(value), high.max(value));
    values.fold((f64::INFINITY, f64::NEG_INFINITY), of)
}

/// Names the colors of curves, one below the other.
pub(crate) fn legend<'c>(
    area: &Area<'_>,
    curves: impl Iterator<Item = (&'c str, RGBColor)>,
) -> Result<()> {
    for (at, (name, color)) in curves.enumerate() {
        let y = 24 + 18 * at as i32;
        area.draw(&PathElement::new([(4, y), (20, y)], color.stroke_width(2)))?;
        area.draw(&Text::new(name, (28, y - 5), ("sans-serif", 12)))?;
    }
    Ok(())
}
