//! The sweep's figure: what is unlearned against what is lost.

use plotters::prelude::*;

/// One setting of a loss.
#[derive(Clone)]
pub(super) struct Point {
    pub distance: f64,
    pub pul: f64,
    pub chosen: bool,
}

/// Settings of one loss, joined in the order of their strength.
#[derive(Clone)]
pub(super) struct Curve {
    pub name: String,
    pub points: Vec<Point>,
}

type Drawn<T> = std::result::Result<T, DrawingAreaErrorKind<<SVGBackend<'static> as DrawingBackend>::ErrorType>>;

/// Points further away than this many times the nearest are said, not drawn: they would press the others together.
const SHOWN: f64 = 4.0;

/// PUL (percent) against a distance, as an SVG document; what the rule chose is circled.
pub(super) fn pul_against_distance(curves: &[Curve], distance: &str) -> String {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (640, 440)).into_drawing_area();
        draw(&root, curves, distance).expect("a string takes every drawing");
    }
    svg
}

fn draw(root: &DrawingArea<SVGBackend, plotters::coord::Shift>, curves: &[Curve], distance: &str) -> Drawn<()> {
    root.fill(&WHITE)?;
    let all = || curves.iter().flat_map(|c| &c.points);
    let nearest = all().map(|p| p.distance).fold(f64::INFINITY, f64::min);
    let is_shown = |p: &&Point| p.distance <= SHOWN * nearest;
    let shown = || all().filter(is_shown);
    let right = shown().map(|p| p.distance).fold(1e-9, f64::max);
    let [low, high] = [shown().map(|p| p.pul).fold(100.0, f64::min), shown().map(|p| p.pul).fold(0.0, f64::max)];
    let beyond = all().count() - shown().count();
    let x_desc = if beyond == 0 { distance.to_string() } else { format!("{distance} ({beyond} further right)") };
    let (x, y) = (0.9 * nearest.min(right)..1.05 * right, (low - 4.0).max(-100.0)..(high + 4.0).min(102.0));
    let mut chart = ChartBuilder::on(root).margin(12).x_label_area_size(40).y_label_area_size(48).build_cartesian_2d(x, y)?;
    chart.configure_mesh().light_line_style(WHITE).x_desc(x_desc).y_desc("PUL %").draw()?;
    for (i, curve) in curves.iter().enumerate() {
        let colour = Palette99::pick(i).mix(1.0);
        let at = |p: &Point| (p.distance, p.pul);
        let points = || curve.points.iter().filter(is_shown);
        chart
            .draw_series(LineSeries::new(points().map(at), colour.stroke_width(1)))?
            .label(&curve.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
        chart.draw_series(points().map(|p| Circle::new(at(p), 3, colour.filled())))?;
        chart.draw_series(points().filter(|p| p.chosen).map(|p| Circle::new(at(p), 8, BLACK.stroke_width(2))))?;
    }
    chart.configure_series_labels().position(SeriesLabelPosition::LowerRight).background_style(WHITE.mix(0.9)).border_style(BLACK).draw()?;
    root.present()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_curve_is_in_the_figure() {
        let point = |distance, pul, chosen| Point { distance, pul, chosen };
        let curves = ["EL2", "NL2"].map(|name| Curve { name: name.into(), points: vec![point(1.0, 50.0, false), point(3.0, 90.0, true)] });
        let svg = pul_against_distance(&curves, "distance");
        assert!(svg.starts_with("<svg") && svg.contains("EL2") && svg.contains("NL2"));
        // Two points a curve, one of them circled.
        assert_eq!(svg.matches("<circle").count(), 6);
        assert!(!svg.contains("further right"));
        let far = Curve { name: "IL2".into(), points: vec![point(500.0, -80.0, false)] };
        let svg = pul_against_distance(&[curves.to_vec(), vec![far]].concat(), "distance");
        assert!(svg.contains("distance (1 further right)"));
        assert_eq!(svg.matches("<circle").count(), 6);
    }
}
