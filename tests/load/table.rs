//! The table, in Markdown.

use crate::events::EVENT_BYTES;
use crate::measure::Run;
use crate::plan::{Form, Point};

const COLUMNS: [&str; 19] = [
    "events/request",
    "form",
    "conn.",
    "objects",
    "events",
    "events/s",
    "MB/s",
    "CPU s/M events",
    "CPU s/GB",
    "core busy",
    "ack p50/p99/p99.9 ms",
    "p99 at half load ms",
    "peak MiB",
    "bare server: ev/s, CPU s/M",
    "our share",
    "with append+fsync: ev/s, CPU s/M",
    "our share",
    "append+fsync loop: MB/s, p99 ms",
    "our share",
];

/// A table that is being printed.
pub(crate) struct Table {
    idle_mib: Vec<f64>,
    ready_ms: Vec<f64>,
    books: (usize, usize, usize),
}

impl Table {
    pub(crate) fn begin() -> Table {
        println!("| {} |", COLUMNS.join(" | "));
        println!("|{}", " --- |".repeat(COLUMNS.len()));
        Table { idle_mib: Vec::new(), ready_ms: Vec::new(), books: (0, 0, 0) }
    }

    /// The medians of a point's runs.
    pub(crate) fn row(&mut self, point: &Point, runs: &[Run]) {
        let of = |figure: &dyn Fn(&Run) -> Option<f64>| median(runs.iter().filter_map(figure).collect());
        let some = |figure: &dyn Fn(&Run) -> f64| of(&|run| Some(figure(run))).unwrap_or_default();
        let rate = some(&|run| run.events_per_second);
        let megabytes = rate * EVENT_BYTES as f64 / 1e6;
        let cpu_per_million = some(&|run| run.cpu_seconds / run.acknowledged as f64 * 1e6);
        let latency = [0, 1, 2].map(|index| format!("{:.2}", some(&|run| run.latency_ms[index])));
        let optional =
            |value: Option<f64>, digits: usize| value.map_or("-".into(), |value| format!("{value:.digits$}"));
        let server = |figures: &dyn Fn(&Run) -> Option<(f64, f64)>| {
            let rate = of(&|run| Some(figures(run)?.0));
            let cpu = optional(of(&|run| Some(figures(run)?.1)), 2);
            (rate, format!("{}, {cpu}", rate.map_or("-".into(), |rate| thousands(rate as usize))))
        };
        let (discard, discard_cell) = server(&|run| run.discard);
        let (keep, keep_cell) = server(&|run| run.keep);
        let append = of(&|run| Some(run.append.as_ref()?.bytes_per_second / 1e6));
        let share =
            |of: Option<f64>, ours: f64| of.map_or("-".into(), |whole| format!("{:.0} %", ours / whole * 100.0));
        let cells = [
            thousands(point.events_per_request),
            match point.form {
                Form::Ndjson => "NDJSON",
                Form::Array => "array",
                Form::Gzip => "gzip",
            }
            .into(),
            point.connections.to_string(),
            if point.codec == "none" { "plain".into() } else { point.codec.clone() },
            thousands(point.events),
            thousands(rate as usize),
            format!("{megabytes:.1}"),
            format!("{cpu_per_million:.2}"),
            format!("{:.2}", cpu_per_million / (EVENT_BYTES as f64 / 1e3)),
            format!("{:.0} %", some(&|run| run.busy) * 100.0),
            latency.join(" / "),
            optional(of(&|run| run.half_load_p99_ms), 2),
            format!("{:.1}", some(&|run| run.peak_mib)),
            discard_cell,
            share(discard, rate),
            keep_cell,
            share(keep, rate),
            format!("{}, {}", optional(append, 1), optional(of(&|run| Some(run.append.as_ref()?.p99_ms)), 2)),
            share(append, megabytes),
        ];
        println!("| {} |", cells.join(" | "));
        self.idle_mib.extend(runs.iter().map(|run| run.idle_mib));
        self.ready_ms.extend(runs.iter().map(|run| run.start_to_ready.as_secs_f64() * 1e3));
        for run in runs {
            self.books.0 += run.acknowledged;
            self.books.1 += run.in_objects;
            self.books.2 += run.refused;
        }
    }

    pub(crate) fn end(self) {
        let (acknowledged, in_objects, refused) = self.books;
        let [idle, ready] = [self.idle_mib, self.ready_ms].map(|values| median(values).unwrap_or_default());
        println!("\nidle memory {idle:.1} MiB; start to ready {ready:.1} ms");
        println!(
            "events acknowledged {}, found in the objects {}; requests refused {refused}",
            thousands(acknowledged),
            thousands(in_objects)
        );
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut shown = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}
