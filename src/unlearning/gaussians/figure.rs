//! The scatter figure: pre-trained, adapted and unlearned points side by side.

use plotters::prelude::*;

use super::{Counts, GaussiansResult, MODES, NEGATIVE_MODES, centre};
use crate::tensor::Tensor;

/// Pixels of one panel's side.
const PANEL: u32 = 360;
/// Half of what each axis shows.
const LIMIT: f64 = 3.2;
/// More points than this make the file larger and the picture no clearer.
const SHOWN: usize = 1000;

/// The figure as an SVG document. Negative centres are red crosses, the others small grey ones.
pub fn scatter(result: &GaussiansResult) -> String {
    let mut svg = String::new();
    let panels = [("Pre-trained", &result.pretrained), ("Adapted to the negatives", &result.adapted), ("Unlearned", &result.unlearned)];
    {
        let root = SVGBackend::with_string(&mut svg, (PANEL * panels.len() as u32, PANEL)).into_drawing_area();
        root.fill(&WHITE).expect("a string takes every drawing");
        for (area, (title, points)) in root.split_evenly((1, panels.len())).iter().zip(panels) {
            panel(area, title, points).expect("a string takes every drawing");
        }
        root.present().expect("a string takes every drawing");
    }
    svg
}

type Drawn<T> = std::result::Result<T, DrawingAreaErrorKind<<SVGBackend<'static> as DrawingBackend>::ErrorType>>;

fn panel(area: &DrawingArea<SVGBackend, plotters::coord::Shift>, title: &str, points: &Tensor) -> Drawn<()> {
    let share = 100.0 * Counts::of(points).negative_share();
    let mut chart = ChartBuilder::on(area)
        .caption(format!("{title}: {share:.1} % negative"), ("sans-serif", 16))
        .margin(8)
        .x_label_area_size(24)
        .y_label_area_size(28)
        .build_cartesian_2d(-LIMIT..LIMIT, -LIMIT..LIMIT)?;
    chart.configure_mesh().disable_mesh().x_labels(7).y_labels(7).draw()?;
    let dots = points.as_slice::<f32>().chunks_exact(2).take(SHOWN).map(|p| (p[0] as f64, p[1] as f64));
    let inside = dots.filter(|(x, y)| x.abs() <= LIMIT && y.abs() <= LIMIT);
    chart.draw_series(inside.map(|p| Circle::new(p, 1.5, RGBColor(31, 119, 180).mix(0.5).filled())))?;
    for mode in 0..MODES {
        let at = centre(mode);
        let (size, colour, width) = if NEGATIVE_MODES.contains(&mode) { (7, RED, 3) } else { (4, RGBColor(90, 90, 90), 1) };
        chart.draw_series([Cross::new((at[0], at[1]), size, colour.stroke_width(width))])?;
    }
    Ok(())
}
