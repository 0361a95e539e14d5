//! A picture of the distributions: milliseconds over percentiles, both in logarithms, so that the tail has its room.

use std::fmt::Write;

use super::histogram::Histogram;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 460.0;
/// Left, top, right, bottom.
const MARGIN: (f64, f64, f64, f64) = (70.0, 48.0, 190.0, 50.0);
/// Marks of the axis.
const MARKS: [(&str, f64); 6] =
    [("0", 0.0), ("50", 0.5), ("90", 0.9), ("99", 0.99), ("99.9", 0.999), ("99.99", 0.9999)];
/// Colours of the curves.
const COLOURS: [&str; 6] = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf"];
/// Points of a curve.
const POINTS: usize = 240;

/// Where a share lies: one unit per nine.
fn nines(share: f64) -> f64 {
    -(1.0 - share).log10()
}

/// The place of the axes: milliseconds are 10 to these powers.
struct Frame {
    low: i32,
    high: i32,
    width: f64,
    height: f64,
}

fn ms(ns: u64) -> f64 {
    (ns as f64 / 1e6).max(1e-3)
}

impl Frame {
    fn of(series: &[&(&str, &Histogram)]) -> Frame {
        // What came at once, together with what was before, would take the room of all the rest.
        let least = series.iter().filter_map(|(_, h)| h.quantile(0.1)).map(ms).fold(f64::INFINITY, f64::min);
        let most = series.iter().map(|(_, h)| ms(h.max())).fold(0.0, f64::max);
        let (low, high) = match series.is_empty() {
            true => (0, 1),
            false => (least.log10().floor() as i32, most.log10().ceil() as i32),
        };
        let (left, top, right, bottom) = MARGIN;
        Frame { low, high: high.max(low + 1), width: WIDTH - left - right, height: HEIGHT - top - bottom }
    }

    fn x(&self, share: f64) -> f64 {
        MARGIN.0 + nines(share) / nines(MARKS[5].1) * self.width
    }

    fn y(&self, ms: f64) -> f64 {
        let part = ((ms.log10() - f64::from(self.low)) / f64::from(self.high - self.low)).max(0.0);
        MARGIN.1 + (1.0 - part) * self.height
    }

    fn axes(&self, out: &mut String) -> std::fmt::Result {
        let (left, top, ..) = MARGIN;
        let (right, bottom) = (left + self.width, top + self.height);
        for power in self.low..=self.high {
            let ms = 10f64.powi(power);
            let (at, text) = (self.y(ms), left - 8.0);
            writeln!(
                out,
                "<line x1=\"{left}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
                 <text x=\"{text}\" y=\"{:.1}\" text-anchor=\"end\">{ms} ms</text>",
                at + 4.0
            )?;
        }
        for (label, share) in MARKS {
            let at = self.x(share);
            writeln!(
                out,
                "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{top}\" y2=\"{bottom}\" stroke=\"#ddd\"/>\
                 <text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{label}</text>",
                bottom + 18.0
            )?;
        }
        let (x, y) = (left + self.width / 2.0, HEIGHT - 10.0);
        writeln!(out, "<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\">percentile</text>")
    }

    /// The curve of number `at`, and its name.
    fn curve(&self, out: &mut String, at: usize, (name, histogram): &(&str, &Histogram)) -> std::fmt::Result {
        let colour = COLOURS[at % COLOURS.len()];
        let point = |(share, ns)| format!("{:.1},{:.1}", self.x(share), self.y(ms(ns)));
        let points: Vec<String> = curve(histogram).map(point).collect();
        let (left, place) = (MARGIN.0 + self.width + 16.0, MARGIN.1 + 14.0 + at as f64 * 20.0);
        writeln!(
            out,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" points=\"{}\"/>\n\
             <line x1=\"{left}\" x2=\"{}\" y1=\"{place}\" y2=\"{place}\" stroke=\"{colour}\" stroke-width=\"2\"/>\
             <text x=\"{}\" y=\"{}\">{}</text>",
            points.join(" "),
            left + 24.0,
            left + 30.0,
            place + 4.0,
            escape(name)
        )
    }
}

/// Draws distributions of nanoseconds with their names; those without values are left out.
pub fn svg(title: &str, series: &[(&str, &Histogram)]) -> String {
    let series: Vec<_> = series.iter().filter(|(_, histogram)| histogram.count() > 0).collect();
    let frame = Frame::of(&series);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n<text x=\"{}\" y=\"24\" font-size=\"15\">{}</text>\n",
        MARGIN.0,
        escape(title)
    );
    // Writing to a string cannot fail.
    let _ = frame.axes(&mut out);
    for (at, one) in series.into_iter().enumerate() {
        let _ = frame.curve(&mut out, at, one);
    }
    out.push_str("</svg>\n");
    out
}

/// Percentiles, as far as the count of values bears them.
fn curve(histogram: &Histogram) -> impl Iterator<Item = (f64, u64)> {
    let last = nines(MARKS[5].1).min((histogram.count() as f64).log10());
    (0..=POINTS).filter_map(move |at| {
        let share = 1.0 - 10f64.powf(-last * at as f64 / POINTS as f64);
        Some((share, histogram.quantile(share)?))
    })
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_stay_within_their_frame_and_never_fall() {
        let (mut fast, mut slow, none) = (Histogram::default(), Histogram::default(), Histogram::default());
        (1..=100_000u64).for_each(|at| fast.record(at * 977));
        slow.record(3_000_000_000);
        let picture = svg("a <b> & c", &[("fast", &fast), ("none", &none), ("slow", &slow)]);
        assert!(picture.contains("a &lt;b&gt; &amp; c") && picture.trim_end().ends_with("</svg>"));
        let curves: Vec<&str> =
            picture.split("points=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
        assert_eq!(curves.len(), 2);
        for curve in curves {
            let points: Vec<(f64, f64)> = curve
                .split(' ')
                .map(|point| point.split_once(',').unwrap())
                .map(|(x, y)| (x.parse().unwrap(), y.parse().unwrap()))
                .collect();
            assert!(
                points.iter().all(|&(x, y)| (70.0..=670.1).contains(&x) && (47.9..=410.1).contains(&y)),
                "{curve}"
            );
            assert!(points.windows(2).all(|pair| pair[1].0 >= pair[0].0 && pair[1].1 <= pair[0].1));
        }
        assert!(!svg("", &[]).contains("NaN"));
    }
}
