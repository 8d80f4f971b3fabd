//! Benchmark scores in a model card: the `model-index` of the metadata and a table, in the form of
//! the zephyr-7b-beta card.

use super::model_card::scalar;
use super::scores::{TaskScore, known};

/// The title of the table's section.
const SECTION: &str = "## Evaluation results";

/// The card with these scores in place of those that it has. The model index is replaced; the table
/// becomes the last section, or replaces the section of the same title. The rest stays as it is.
pub fn with_scores(card: &str, model_name: &str, scores: &[TaskScore]) -> String {
    let card = with_index(card, &model_index(model_name, scores));
    with_section(&card, &section(scores))
}

/// The `model-index` entry of the metadata, with a line feed at its end.
pub fn model_index(model_name: &str, scores: &[TaskScore]) -> String {
    let mut yaml = format!("model-index:\n- name: {}\n", scalar(model_name));
    if scores.is_empty() {
        yaml.push_str("  results: []\n");
        return yaml;
    }
    yaml.push_str("  results:\n");
    for score in scores {
        let known = known(&score.task);
        let long = known.map_or(score.task.as_str(), |task| task.long);
        let name = match score.num_fewshot {
            Some(shots) => format!("{long} ({shots}-Shot)"),
            None => long.to_owned(),
        };
        yaml.push_str(&format!(
            "  # {name}\n  - task:\n      type: text-generation\n      name: Text Generation\n    \
             dataset:\n      name: {}\n      type: {}\n",
            scalar(&name),
            scalar(known.map_or(score.task.as_str(), |task| task.dataset)),
        ));
        if let Some(known) = known {
            let config = known.config.map(|config| format!("      config: {}\n", scalar(config)));
            yaml.push_str(&config.unwrap_or_default());
            yaml.push_str(&format!("      split: {}\n", known.split));
        }
        yaml.push_str("      args:\n");
        if let Some(shots) = score.num_fewshot {
            yaml.push_str(&format!("        num_few_shot: {shots}\n"));
        }
        yaml.push_str(&format!("        definition: {}\n", scalar(&score.definition)));
        if let Some(limit) = score.limit {
            yaml.push_str(&format!("        limit: {limit}\n"));
        }
        yaml.push_str(&format!(
            "    metrics:\n    - type: {}\n      name: {}\n      value: {:?}\n",
            scalar(&score.metric),
            scalar(metric_name(&score.metric)),
            score.percent()
        ));
    }
    yaml
}

/// The words of the leaderboard for a metric.
fn metric_name(metric: &str) -> &str {
    match metric {
        "acc" => "accuracy",
        "acc_norm" => "normalized accuracy",
        "exact_match" => "exact match",
        "f1" => "f1 score",
        other => other,
    }
}

/// The section with the table, from its title to its last line.
fn section(scores: &[TaskScore]) -> String {
    let definition = scores.first().map_or("lm-eval", |score| score.definition.as_str());
    let of_definition = match definition {
        "leaderboard" => "the first Open LLM Leaderboard",
        _ => "lm-evaluation-harness",
    };
    let of_documents = match scores.iter().find_map(|score| score.limit) {
        Some(limit) => format!(" on the first {limit} documents of each task"),
        None => String::new(),
    };
    let mean = scores.iter().map(TaskScore::percent).sum::<f64>() / scores.len().max(1) as f64;
    let mut rows = vec![("Avg.".to_owned(), format!("{mean:.2}"))];
    rows.extend(scores.iter().map(|score| {
        let stderr = score.stderr.map(|stderr| format!(" ± {:.2}", 100.0 * stderr));
        (score.label(), format!("{:.2}{}", score.percent(), stderr.unwrap_or_default()))
    }));
    let width = |cells: &mut dyn Iterator<Item = usize>| cells.max().unwrap_or(0);
    let name_width = width(&mut rows.iter().map(|(name, _)| name.chars().count())).max(6);
    let value_width = width(&mut rows.iter().map(|(_, value)| value.chars().count())).max(5);
    let mut text = format!(
        "{SECTION}\n\nScores in percent with the prompts and metrics of {of_definition}, measured \
         by Favonius{of_documents}.\n\n| {:<name_width$} | {:<value_width$} |\n|-{}-|-{}-|\n",
        "Metric",
        "Value",
        "-".repeat(name_width),
        "-".repeat(value_width)
    );
    for (name, value) in rows {
        text.push_str(&format!("| {name:<name_width$} | {value:<value_width$} |\n"));
    }
    text
}

/// Replaces the `model-index` of the front matter, or adds it at its end. A card without front
/// matter gets one.
fn with_index(card: &str, index: &str) -> String {
    let front = card.strip_prefix("---\n").and_then(|rest| rest.split_once("\n---"));
    let Some((front, body)) = front else { return format!("---\n{index}---\n\n{card}") };
    let mut kept = String::new();
    let mut inside = false;
    for line in front.lines() {
        let continues = line.starts_with([' ', '-', '#']) || line.is_empty();
        inside = line.starts_with("model-index:") || (inside && continues);
        if !inside {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    format!("---\n{kept}{index}---{body}")
}

/// Replaces the section of the scores, or adds it at the end.
fn with_section(card: &str, section: &str) -> String {
    let start = card.find(&format!("\n{SECTION}\n")).map(|place| place + 1);
    let Some(start) = start else {
        return format!("{}\n\n{section}", card.trim_end_matches('\n'));
    };
    let after = card[start + SECTION.len()..].find("\n## ");
    let rest = after.map_or("", |place| &card[start + SECTION.len() + place..]);
    format!("{}{section}{rest}", &card[..start])
}

#[cfg(test)]
mod tests {
    use super::super::scores::published;
    use super::*;

    const CARD: &str = "---\nlicense: mit\ntags:\n- dpo\nmodel-index:\n- name: a\n  results: []\n\
                        ---\n\n<!-- a comment -->\n\n# a\n\nA model.\n\n### Framework versions\n\n- \
                        Favonius 0.1.0\n";

    #[test]
    fn scores_are_added_once_and_the_rest_stays() {
        let scores = published("zephyr-7b-beta");
        let card = with_scores(CARD, "a", &scores[..2]);
        let start = "---\nlicense: mit\ntags:\n- dpo\nmodel-index:\n- name: a\n  results:\n  \
                     # AI2 Reasoning Challenge (25-Shot)\n  - task:\n      type: text-generation\n";
        assert!(card.starts_with(start), "{card}");
        let table = "\n\n- Favonius 0.1.0\n\n## Evaluation results\n\nScores in percent with the \
                     prompts and metrics of the first Open LLM Leaderboard, measured by \
                     Favonius.\n\n\
                     | Metric              | Value |\n|---------------------|-------|\n\
                     | Avg.                | 73.19 |\n| ARC (25-shot)       | 62.03 |\n\
                     | HellaSwag (10-shot) | 84.36 |\n";
        assert!(card.ends_with(table), "{card}");
        assert_eq!(with_scores(&card, "a", &scores[..2]), card, "the same scores change nothing");
        let more = with_scores(&format!("{card}\n## Notes\n\nMine.\n"), "a", &scores);
        assert!(more.ends_with("| DROP (3-shot)       | 9.66  |\n\n## Notes\n\nMine.\n"), "{more}");
        assert_eq!(more.matches("model-index:").count(), 1);
        assert_eq!(more.matches("num_few_shot").count(), 7);
    }

    #[test]
    fn a_card_without_metadata_gets_it() {
        let card = with_scores("# Mine\n", "b", &published("zephyr-7b-beta")[..1]);
        assert!(card.starts_with("---\nmodel-index:\n- name: b\n"), "{card}");
        assert!(card.contains("---\n\n# Mine\n\n## Evaluation results\n"), "{card}");
    }
}
