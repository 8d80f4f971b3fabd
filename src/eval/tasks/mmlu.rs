//! MMLU: exam questions of 57 subjects in four groups (Hendrycks et al., "Measuring Massive
//! Multitask Language Understanding", 2020).

use serde_json::json;

use crate::eval::python::trimmed;
use crate::eval::row::{Row, text, texts, value};
use crate::eval::rules::{self, Rules, Shots};

/// The groups with their subjects.
pub const GROUPS: [(&str, &str, &[&str]); 4] = [
    (
        "mmlu_stem",
        "stem",
        &[
            "abstract_algebra",
            "anatomy",
            "astronomy",
            "college_biology",
            "college_chemistry",
            "college_computer_science",
            "college_mathematics",
            "college_physics",
            "computer_security",
            "conceptual_physics",
            "electrical_engineering",
            "elementary_mathematics",
            "high_school_biology",
            "high_school_chemistry",
            "high_school_computer_science",
            "high_school_mathematics",
            "high_school_physics",
            "high_school_statistics",
            "machine_learning",
        ],
    ),
    (
        "mmlu_other",
        "other",
        &[
            "business_ethics",
            "clinical_knowledge",
            "college_medicine",
            "global_facts",
            "human_aging",
            "management",
            "marketing",
            "medical_genetics",
            "miscellaneous",
            "nutrition",
            "professional_accounting",
            "professional_medicine",
            "virology",
        ],
    ),
    (
        "mmlu_social_sciences",
        "social sciences",
        &[
            "econometrics",
            "high_school_geography",
            "high_school_government_and_politics",
            "high_school_macroeconomics",
            "high_school_microeconomics",
            "high_school_psychology",
            "human_sexuality",
            "professional_psychology",
            "public_relations",
            "security_studies",
            "sociology",
            "us_foreign_policy",
        ],
    ),
    (
        "mmlu_humanities",
        "humanities",
        &[
            "formal_logic",
            "high_school_european_history",
            "high_school_us_history",
            "high_school_world_history",
            "international_law",
            "jurisprudence",
            "logical_fallacies",
            "moral_disputes",
            "moral_scenarios",
            "philosophy",
            "prehistory",
            "professional_law",
            "world_religions",
        ],
    ),
];

/// The subject of a task such as `mmlu_anatomy`.
pub fn subject_of(task: &str) -> Option<&'static str> {
    let subject = task.strip_prefix("mmlu_")?;
    GROUPS.iter().flat_map(|(_, _, subjects)| *subjects).find(|known| **known == subject).copied()
}

/// lm-eval's definition of a subject.
pub fn lm_eval(subject: &str) -> String {
    let group = GROUPS.iter().find(|(_, _, subjects)| subjects.contains(&subject));
    let tag = group.map_or("", |(name, _, _)| name);
    format!(
        "{}task: mmlu_{subject}\ntask_alias: {subject}\ntag: {tag}_tasks\ndataset_name: {subject}\n\
         description: \"{}\\n\\n\"\n",
        include_str!("mmlu.yaml"),
        description(subject)
    )
}

/// The leaderboard's definition of a subject.
pub fn leaderboard(subject: &str) -> Rules {
    Rules {
        name: format!("mmlu_{subject}"),
        alias: subject.to_owned(),
        version: "1",
        data_path: "cais/mmlu",
        data_name: Some(subject.to_owned()),
        split: "test",
        shots: Shots::First("dev"),
        num_fewshot: 5,
        description: Some(description(subject)),
        prepare,
        question: rules::query,
        answer: rules::right_choice,
        requests: rules::choice_requests,
        own_question: false,
        measure: rules::choice_metrics,
        metrics: &["acc", "acc_norm"],
    }
}

fn description(subject: &str) -> String {
    let subject = subject.replace('_', " ");
    format!("The following are multiple choice questions (with answers) about {subject}.")
}

fn prepare(row: &Row) -> Result<Row, String> {
    const LETTERS: [&str; 4] = ["A", "B", "C", "D"];
    let mut query = trimmed(text(row, "question")?).to_owned() + "\n";
    for (letter, choice) in LETTERS.iter().zip(texts(row, "choices")?) {
        query.push_str(&format!("{letter}. {choice}\n"));
    }
    query.push_str("Answer:");
    Ok(Row::from_iter([
        ("query".to_owned(), query.into()),
        ("choices".to_owned(), json!(LETTERS)),
        ("gold".to_owned(), value(row, "answer")?.clone()),
    ]))
}
