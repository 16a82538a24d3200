//! Which heads does a small model need to repeat a sequence?

use headscope::prelude::*;

fn main() -> Result<()> {
    headscope::device::tune_process();
    let model = Model::load("induction")?;
    let tokens = Tokens::new(&[vec![5, 1, 7, 3, 4, 8, 5, 1, 7, 3, 4, 8], vec![2, 9, 6, 1, 8, 3, 2, 9, 6, 1, 8, 3]])?;
    let effects = Sweep::ablate(&model, &tokens, Ablation::Mean).metric(Metric::Loss).run()?;
    println!("{}", effects.frame());
    Ok(())
}
