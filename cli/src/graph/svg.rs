//! Lines as a drawing (SVG 1.1), for browsers and documents.
//!
//! Guarantees: valid XML whatever keys are called; no script and nothing that is loaded from elsewhere; lines differ by
//! their dashes as well as by their colours, and have titles.

use std::fmt::Write;

use super::board::short;
use super::series::Series;
use crate::table::printable;

/// Of the whole, in pixels.
const SIZE: (f64, f64) = (960.0, 480.0);
/// Of the plot: left, top, right, bottom.
const PLOT: (f64, f64, f64, f64) = (84.0, 48.0, 676.0, 420.0);
/// Names in the legend; the rest is in the line's title.
const NAME: usize = 34;
/// Lines of the legend that fit.
const NAMES: usize = 20;
/// Okabe and Ito's colours, which the colour-blind can tell apart; grey for their yellow, which is hard to see on white.
const COLOURS: [&str; 8] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#e69f00", "#56b4e9", "#6b6b6b"];
const DASHES: [&str; 4] = ["none", "8 3", "2 3", "9 3 2 3"];

/// A drawing of lines. `unit` is what the numbers are; `from_zero`: zero is on the axis though no number is near it.
pub fn chart(title: &str, unit: &str, from_zero: bool, series: &[Series]) -> String {
    let points = || series.iter().flat_map(|series| &series.points).map(|point| (point.0, point.1.as_f64()));
    let times = Axis::new(points().map(|point| point.0), false);
    let numbers = Axis::new(points().map(|point| point.1).chain(from_zero.then_some(0.0)), true);
    let x = |seconds: f64| PLOT.0 + times.at(seconds) * (PLOT.2 - PLOT.0);
    let y = |number: f64| PLOT.3 - numbers.at(number) * (PLOT.3 - PLOT.1);
    let (title, unit) = (xml(title), xml(unit));
    let mut text = String::new();
    // Writing into a String does not fail.
    let _ = writeln!(
        text,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{w}\" height=\"{h}\" viewBox=\"0 0 {w} {h}\" role=\"img\" \
         aria-label=\"{title}\" font-family=\"sans-serif\" font-size=\"12\" fill=\"#222222\">\n\
         <title>{title}</title>\n\
         <rect width=\"{w}\" height=\"{h}\" fill=\"#ffffff\"/>\n\
         <text x=\"{left}\" y=\"24\" font-size=\"16\" font-weight=\"bold\">{title}</text>",
        w = SIZE.0,
        h = SIZE.1,
        left = PLOT.0,
    );
    for tick in numbers.ticks() {
        let at = y(tick);
        let _ = writeln!(
            text,
            "<line x1=\"{}\" y1=\"{at:.1}\" x2=\"{}\" y2=\"{at:.1}\" stroke=\"#dddddd\"/>\n\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            PLOT.0,
            PLOT.2,
            PLOT.0 - 8.0,
            at + 4.0,
            short(tick),
        );
    }
    for tick in times.ticks() {
        let at = x(tick);
        let _ = writeln!(
            text,
            "<line x1=\"{at:.1}\" y1=\"{}\" x2=\"{at:.1}\" y2=\"{}\" stroke=\"#222222\"/>\n\
             <text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            PLOT.3,
            PLOT.3 + 5.0,
            PLOT.3 + 20.0,
            short(tick),
        );
    }
    let _ = writeln!(
        text,
        "<path d=\"M{l} {t}V{b}H{r}\" fill=\"none\" stroke=\"#222222\"/>\n\
         <text x=\"{}\" y=\"{}\" text-anchor=\"middle\">seconds</text>\n\
         <text transform=\"translate(18 {}) rotate(-90)\" text-anchor=\"middle\">{unit}</text>",
        (PLOT.0 + PLOT.2) / 2.0,
        PLOT.3 + 42.0,
        (PLOT.1 + PLOT.3) / 2.0,
        l = PLOT.0,
        t = PLOT.1,
        r = PLOT.2,
        b = PLOT.3,
    );
    for (index, series) in series.iter().enumerate() {
        let name = series.label();
        let style = style(index);
        let points: Vec<(f64, f64)> = series.points.iter().map(|point| (x(point.0), y(point.1.as_f64()))).collect();
        let _ = writeln!(text, "<g {style}><title>{}</title>{}</g>", xml(&name), line(&points));
        let at = PLOT.1 + 8.0 + index as f64 * 18.0;
        if index < NAMES {
            let _ = writeln!(
                text,
                "<line x1=\"692\" y1=\"{at}\" x2=\"724\" y2=\"{at}\" {style}/>\n\
                 <text x=\"732\" y=\"{}\">{}</text>",
                at + 4.0,
                xml(&cut(&name)),
            );
        }
    }
    if series.len() > NAMES {
        let at = PLOT.1 + 12.0 + NAMES as f64 * 18.0;
        let _ = writeln!(text, "<text x=\"732\" y=\"{at}\">and {} more</text>", series.len() - NAMES);
    }
    text + "</svg>\n"
}

/// No two of the first 32 lines look the same.
fn style(index: usize) -> String {
    let dash = DASHES[(index + index / COLOURS.len()) % DASHES.len()];
    let colour = COLOURS[index % COLOURS.len()];
    format!("fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" stroke-dasharray=\"{dash}\"")
}

/// Through all points; one alone is a dot.
fn line(points: &[(f64, f64)]) -> String {
    match points {
        [] => String::new(),
        [(x, y)] => format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2\"/>"),
        many => {
            let points: Vec<String> = many.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            format!("<polyline points=\"{}\"/>", points.join(" "))
        }
    }
}

fn cut(name: &str) -> String {
    match name.char_indices().nth(NAME) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}

/// Text for XML 1.0: markup is escaped, and what no document may have is not there.
fn xml(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in printable(text).chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&apos;"),
            '\u{fffe}' | '\u{ffff}' => escaped.push(char::REPLACEMENT_CHARACTER),
            other => escaped.push(other),
        }
    }
    escaped
}

/// From the least to the most that is on it, and the distance between two marks.
#[derive(Debug, PartialEq)]
struct Axis {
    from: f64,
    to: f64,
    step: f64,
}

impl Axis {
    /// With room for all numbers; `whole`: it begins and ends at a mark.
    fn new(numbers: impl Iterator<Item = f64>, whole: bool) -> Self {
        let (least, most) = numbers.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), n| (a.min(n), b.max(n)));
        let (from, to) = match most - least {
            wide if wide > 0.0 => (least, most),
            // One number, or none.
            _ if least.is_finite() => (least, least + 1.0),
            _ => (0.0, 1.0),
        };
        // 1, 2 or 5 of a power of ten, so that there are five marks to ten.
        let power = 10f64.powf(((to - from) / 5.0).log10().floor());
        let step = [5.0, 2.0, 1.0].into_iter().map(|n| n * power).find(|step| (to - from) / step >= 5.0);
        let step = step.unwrap_or(power);
        match whole {
            true => Axis { from: (from / step).floor() * step, to: (to / step).ceil() * step, step },
            false => Axis { from, to, step },
        }
    }

    /// 0 to 1.
    fn at(&self, number: f64) -> f64 {
        (number - self.from) / (self.to - self.from)
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let (step, first) = (self.step, (self.from / self.step).ceil());
        let count = ((self.to / step).floor() - first) as usize;
        (0..=count).map(move |index| (first + index as f64) * step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::number::Number;
    use serde_json::{Value, json};

    fn series(key: Value, points: &[(f64, f64)]) -> Series {
        let points = points.iter().map(|(seconds, number)| (*seconds, Number::Float(*number))).collect();
        Series { node: Some("n1".into()), key, growth: Number::ZERO, points }
    }

    #[test]
    fn a_drawing_is_xml_whatever_keys_are_called() {
        let odd = json!({"name": "</title><script>alert(1)</script>&\"'\u{0}\u{1b}[2J\u{ffff}"});
        let all = [series(odd, &[(0.0, 1.0), (1.0, 4.0)]), series(json!(7), &[(1.0, 2.0)]), series(json!(8), &[])];
        let text = chart("a <b> of \"c\"", "value.x & y", false, &all);
        let document = roxmltree::Document::parse(&text).unwrap();
        let all = |tag: &str| document.descendants().filter(|node| node.has_tag_name(tag)).count();
        assert_eq!((all("script"), all("polyline"), all("circle")), (0, 1, 1));
        let titles: Vec<_> = document.descendants().filter(|node| node.has_tag_name("title")).collect();
        assert_eq!(titles[0].text(), Some("a <b> of \"c\""));
        assert!(titles[1].text().unwrap().starts_with("n1 name=</title><script>"));
        let texts: Vec<_> = document.descendants().filter_map(|node| node.text()).collect();
        assert!(texts.contains(&"seconds") && texts.contains(&"value.x & y"), "{texts:?}");
    }

    #[test]
    fn many_lines_and_none_fit_too() {
        let all: Vec<Series> = (0..40).map(|n| series(json!(n), &[(0.0, f64::from(n)), (9.0, 1e9)])).collect();
        let text = chart("t", "u", true, &all);
        assert!(text.contains(">and 20 more<"));
        roxmltree::Document::parse(&text).unwrap();
        roxmltree::Document::parse(&chart("t", "u", true, &[])).unwrap();
        let styles: std::collections::BTreeSet<String> = (0..32).map(style).collect();
        assert_eq!(styles.len(), 32);
    }

    #[test]
    fn axes_have_round_marks() {
        let marks = |numbers: &[f64], whole| Axis::new(numbers.iter().copied(), whole).ticks().collect::<Vec<_>>();
        assert_eq!(marks(&[3.0, 97.0], true), [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 100.0]);
        assert_eq!(marks(&[0.0, 30.0], false), [0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0]);
        assert_eq!(marks(&[7.0, 7.0], true).len(), 6);
        assert_eq!(marks(&[], true).len(), 6);
    }
}
