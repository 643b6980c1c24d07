//! What a sentence on a wrong variable or file asks for.

/// The variable that a sentence of the configuration's begins with.
pub(super) fn variable(sentence: &str) -> &str {
    sentence.split([':', '=', ' ']).next().unwrap_or_default()
}

/// What an error of the configuration asks for: what it expects, or else what its sentence ends with, or an example.
pub(super) fn what_to_set(error: &str) -> String {
    let name = variable(error);
    let (problem, example) = error.rsplit_once("; example: ").unwrap_or((error, ""));
    let example = if example.is_empty() { String::new() } else { format!(", for example {example}") };
    if let Some((_, expected)) = problem.split_once("expected ").filter(|_| problem.contains(" (in that file)")) {
        return format!("let the file of {name} hold {}", expected.replace(" (in that file)", ""));
    }
    match (problem.split_once("expected "), problem.split_once("; ")) {
        (Some((_, expected)), _) => format!("set {name} to {expected}{example}"),
        (None, Some((_, remedy))) => remedy.to_owned(),
        (None, None) if problem.contains(": not set") => format!("set {name}{example}"),
        (None, None) => format!("set {name} right{example}"),
    }
}

/// What an error of a file asks for. What is wrong in a file that can be read, its sentence says.
pub(super) fn of_file(error: &str) -> String {
    let name = variable(error);
    let unread = ["No such file", "Permission denied", "Is a directory", "Not a directory"];
    if unread.iter().any(|words| error.contains(words)) {
        return "mount the file, and let this user read it; its path begins with /".to_owned();
    }
    // Behind the path, which may hold anything, and before what every line of a file of tokens has to be.
    let problem = error.rsplit_once("\": ").map_or(error, |(_, problem)| problem);
    let (problem, kind) = problem.split_once("; expected ").unwrap_or((problem, ""));
    for before in ["expected ", "should be "] {
        if let Some((place, expected)) = problem.split_once(before) {
            let line = place.split_once(':').map(|(line, _)| line).filter(|line| line.starts_with("line "));
            let line = line.map(|line| format!("{line} of ")).unwrap_or_default();
            return format!("let {line}the file of {name} hold {}", expected.replace(" (in that file)", ""));
        }
    }
    let kind = if kind.is_empty() { String::new() } else { format!("; it has to hold {kind}") };
    format!("correct the file of {name}: {problem}{kind}")
}
