//! How things look on the terminal. A reader that is gone (`| head`) is an error of kind `BrokenPipe`, where `println!`
//! would panic.

use std::io::{self, IsTerminal, Write};

/// Longest piece of a log line that is shown, in characters.
const SHOWN_CHARACTERS: usize = 100;

/// `text` in bold, where standard output is a terminal.
pub(crate) fn bold(text: &str) -> String {
    if std::io::stdout().is_terminal() { format!("\x1b[1m{text}\x1b[0m") } else { text.into() }
}

/// A line as it is.
pub(crate) fn say(text: &str) -> io::Result<()> {
    writeln!(io::stdout(), "{text}")
}

/// The title of a step.
pub(crate) fn heading(number: usize, title: &str) -> io::Result<()> {
    say(&format!("\n{}", bold(&format!("{number}  {title}"))))
}

/// A name and what belongs to it.
pub(crate) fn line(name: &str, text: &str) -> io::Result<()> {
    say(&format!("    {name:<10} {text}"))
}

/// Something to copy or to read in full.
pub(crate) fn note(text: &str) -> io::Result<()> {
    say(&format!("      {text}"))
}

/// Variables, one on a line.
pub(crate) fn variables(environment: &[(&'static str, String)]) -> io::Result<()> {
    environment.iter().try_for_each(|(name, value)| note(&format!("{name}={value}")))
}

/// The start of a log line.
pub(crate) fn shortened(text: &str) -> String {
    if text.chars().count() <= SHOWN_CHARACTERS {
        return text.into();
    }
    text.chars().take(SHOWN_CHARACTERS).chain(['…']).collect()
}

/// A number with its thousands set apart.
pub(crate) fn thousands(number: usize) -> String {
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
