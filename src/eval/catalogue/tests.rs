use super::*;

fn tasks(definition: Definition, names: &[&str]) -> Vec<String> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let entries = Catalogue::new(definition).find(&names).unwrap();
    entries.iter().flat_map(Entry::tasks).map(|task| task.name().to_owned()).collect()
}

#[test]
fn every_built_in_name_is_found_in_both_definitions() {
    for definition in [Definition::LmEval, Definition::Leaderboard] {
        let mut catalogue = Catalogue::new(definition);
        for name in catalogue.names() {
            let found = catalogue.find(std::slice::from_ref(&name));
            assert!(found.is_ok_and(|entries| !entries.is_empty()), "{name}");
        }
    }
}

#[test]
fn names_stand_for_tasks_groups_tags_and_patterns() {
    let count = |names: &[&str]| tasks(Definition::LmEval, names).len();
    assert_eq!(count(&["mmlu"]), 57);
    assert_eq!(count(&["mmlu_stem"]), 19);
    assert_eq!(count(&["mmlu_humanities_tasks"]), 13);
    assert_eq!(count(&["mmlu_high_school_*"]), 14);
    assert_eq!(count(&["gsm8k", "gsm8k"]), 1);
    let arc = tasks(Definition::Leaderboard, &["ai2_arc"]);
    assert_eq!(arc, ["arc_challenge", "arc_easy"]);
    assert!(matches("a*c*", "abcd") && matches("*", "") && !matches("a*c", "abcd"));
}

#[test]
fn folders_have_tasks_that_groups_may_change() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("base.yaml", "dataset_path: d\ntest_split: test\ndoc_to_text: q\ndoc_to_target: a\n");
    write("one.yaml", "include: base.yaml\ntask: one\ntag: [both]\n");
    write("two.yml", "include: base.yaml\ntask: two\ntag: both\nnum_fewshot: 4\n");
    write(
        "group.yaml",
        "group: g\nnum_fewshot: 2\ntask:\n  - both\n  - task: arc_easy\n    num_fewshot: 3\n  \
         - task: three\n    dataset_path: e\n    test_split: test\n    doc_to_text: q\n    \
         doc_to_target: a\n",
    );
    let mut catalogue = Catalogue::new(Definition::LmEval);
    catalogue.add_folder(dir.path()).unwrap();
    let entries = catalogue.find(&["g".to_owned()]).unwrap();
    let shots = |task: &TaskSpec| match &task.0 {
        Spec::LmEval(config) => config.num_fewshot,
        Spec::Leaderboard(_) => None,
    };
    let found: Vec<(&str, Option<usize>)> =
        entries[0].tasks().into_iter().map(|task| (task.name(), shots(task))).collect();
    let expected =
        [("one", Some(2)), ("two", Some(2)), ("arc_easy", Some(3)), ("g::three", Some(2))];
    assert_eq!(found, expected);
    // As a name on the command line, the folder stands for its tasks and groups.
    let names = [dir.path().display().to_string()];
    let error = Catalogue::new(Definition::LmEval).find(&names).unwrap_err().to_string();
    assert!(error.contains("task `one`: the task is named twice"), "{error}");
    write("two.yml", "include: base.yaml\ntask: one\n");
    let error = catalogue.add_folder(dir.path()).unwrap_err().to_string();
    assert!(error.contains("`one` is also in"), "{error}");
}

#[test]
fn a_group_that_contains_itself_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("g.yaml");
    std::fs::write(&file, "group: g\ntask: [g]\n").unwrap();
    let error = Catalogue::new(Definition::LmEval).find(&[file.display().to_string()]);
    assert!(error.unwrap_err().to_string().contains("the group contains itself"));
}
