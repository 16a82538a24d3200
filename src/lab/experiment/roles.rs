//! E7: which roles do heads of trained models play?

use super::grid::{above, against, alone, numbered, prediction, sub_claim};
use super::work::{Pretrained, ROLE, Texts};
use super::{Cell, Experiment, Grid, Work};
use crate::lab::language::LookFrom;
use crate::lab::verdict::first::{Case, Expect, Prediction};
use crate::lab::verdict::{Contrast, Endpoint, Gate, Limit, Reading, Setting, SubClaim};

/// The roles in the small English, with a description of what a head with that role finds.
const STORIES: [(&str, &str); 4] = [
    ("agreement", "the subject of a verb"),
    ("entity", "another part or mention of a name"),
    ("coreference", "whom a pronoun stands for"),
    ("verb_object", "the verb of an object"),
];
/// Relations of Universal Dependencies, and entities.
const RELATIONS: [(&str, &str); 5] = [
    ("nsubj_to_head", "the verb of a subject"),
    ("obj_to_head", "the verb of an object"),
    ("det_to_head", "the noun of a determiner"),
    ("amod_to_head", "the noun of an adjective"),
    ("entity", "another part or mention of a name"),
];
const UD: &str = "annotations/en_ewt-ud-dev.conllu.gz";
const GAP: &str = "annotations/gap-development.tsv.gz";

/// A corpus: the models tested on it, its roles and the prefix of its cell names.
struct Corpus {
    name: &'static str,
    model: &'static str,
    texts: Texts,
    count: usize,
    roles: Vec<(&'static str, &'static str)>,
    /// Whether the model predicts words, so that ablating a head can affect its predictions.
    predicts: bool,
}

/// E7: do heads of trained models play roles beyond what position alone explains and beyond random heads, and does the
/// model's own task depend on them? Only the full grid, with human-annotated text that [`Texts`] looks up in
/// `HEADSCOPE_DATA`, decides anything.
pub(super) fn roles(grid: Grid) -> Experiment {
    let corpora = corpora(grid);
    let cell = |corpus: &Corpus, random: bool| {
        let roles = corpus.roles.iter().map(|(role, _)| (*role).to_owned()).collect();
        let (texts, count) = (corpus.texts.clone(), corpus.count);
        let work = Pretrained {
            model: corpus.model.to_owned(),
            random,
            texts,
            count,
            roles,
            causal: corpus.predicts && !random,
        };
        let name = if random { format!("{}-random", corpus.name) } else { corpus.name.to_owned() };
        Cell { name, work: Work::Pretrained(work) }
    };
    let cells = corpora.iter().flat_map(|corpus| [cell(corpus, false), cell(corpus, true)]).collect();
    Experiment {
        sub_claims: if grid == Grid::Full { vec![real_heads()] } else { vec![] },
        first_predictions: predictions(&corpora),
        cells,
        ..numbered(
            7,
            "Roles",
            "Do heads of trained models play roles: syntax, entities, position, coreference, verbs and objects?",
        )
    }
}

fn corpora(grid: Grid) -> Vec<Corpus> {
    let stories = |name, looking, predicts| Corpus {
        name,
        model: name,
        texts: Texts::Stories { length: 48, looking },
        count: 100,
        roles: STORIES.to_vec(),
        predicts,
    };
    let mut all = vec![stories("english", LookFrom::Prediction, true), stories("minilm", LookFrom::Word, false)];
    if grid == Grid::Full {
        let real = |name, texts, count, roles| Corpus { name, model: "minilm", texts, count, roles, predicts: false };
        all.push(real("minilm-ud", Texts::Conllu(UD.into()), 200, RELATIONS.to_vec()));
        all.push(real("minilm-gap", Texts::Gap(GAP.into()), 60, vec![("coreference", "whom a pronoun stands for")]));
    }
    all
}

/// The claim's roles in human-annotated text: role, its name there, and the cell.
const ANNOTATED: [(&str, &str, &str); 4] = [
    ("agreement", "nsubj_to_head", "minilm-ud"),
    ("entity", "entity", "minilm-ud"),
    ("coreference", "coreference", "minilm-gap"),
    ("verb_object", "obj_to_head", "minilm-ud"),
];

/// What E7 decides.
fn real_heads() -> SubClaim {
    let cases = |suffix: &str| -> Vec<Contrast> {
        let case = |(name, role, cell): &(&str, &str, &str)| Contrast::of(*name, format!("{cell}{suffix}")).task(*role);
        ANNOTATED.iter().map(case).collect()
    };
    let random = Gate {
        text: "heads of random weights have no role".to_owned(),
        metric: "gain_over_offset".to_owned(),
        task: None,
        reading: Reading::End,
        limit: Limit::Below(ROLE),
        cases: cases("-random"),
    };
    let endpoint = Endpoint { given_learning: false, ..above("gain_over_offset", (ROLE, "ten of a hundred links")) };
    let text =
        "Heads with roles exist in a model of real text: they find what annotators marked, beyond position and chance";
    let claim = sub_claim("C5a", text, endpoint, cases(""));
    SubClaim { setting: Setting::RealModels, gates: vec![random], ..claim }
}

/// The predictions for every role: a head beats fixed offsets and random weights and, if the model predicts words,
/// ablating it hurts.
fn predictions(corpora: &[Corpus]) -> Vec<Prediction> {
    let mut all = vec![];
    let mut predict = |role: &str, text: String, metric: &str, level: f64, cases: Vec<Case>| {
        if !cases.is_empty() {
            let task = Some(role.to_owned());
            let usual = prediction("C5", &text, metric, Expect::Greater);
            all.push(Prediction { task, level, learned: false, cases, ..usual });
        }
    };
    let names = corpora.iter().flat_map(|corpus| &corpus.roles);
    let mut roles: Vec<(&str, &str)> = names.copied().collect();
    roles.sort_unstable();
    roles.dedup_by_key(|(role, _)| *role);
    for (role, finds) in roles {
        let with = || corpora.iter().filter(|corpus| corpus.roles.iter().any(|(own, _)| *own == role));
        let each = |case: &dyn Fn(&str) -> Case| with().map(|corpus| case(corpus.name)).collect::<Vec<_>>();
        let itself = |name: &str| alone(name, name);
        let beyond = |name: &str| against(name, name, format!("{name}-random"));
        let text = format!("A head finds {finds} more often than any fixed offset does");
        predict(role, text, "gain_over_offset", 0.0, each(&itself));
        let text = format!("A head finds {finds} more often than any head of random weights does");
        predict(role, text, "accuracy", 0.0, each(&beyond));
        let text = format!("The head that finds {finds} is needed more than heads as long are, where it looks");
        let predicting = with().filter(|corpus| corpus.predicts).map(|corpus| itself(corpus.name)).collect();
        predict(role, text, "effect_rank", 0.5, predicting);
    }
    all
}
