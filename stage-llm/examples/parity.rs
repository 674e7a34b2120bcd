//! throw-away
use std::collections::BTreeMap; use std::path::*; use std::sync::Arc; use std::time::Instant;
use candle_core::{DType, Device, Tensor, Result as R};
use common::{checkpoint::*, event::*, message::*, plan::*, stage::*, tensor::Tensor as Wire};
use stage_llm::{answer::*, observe::*};
struct Rec { got: BTreeMap<String, Vec<(u64, Tensor)>>, media: bool }
impl Observe for Rec { fn see(&mut self, at: Boundary, v: &Tensor) -> R<()> {
  let (n, o) = match at { Boundary::TextHidden(i) => (format!("text_hidden.{i}"), 0), Boundary::MediaHidden(m,i,o) => { if !self.media {return Ok(())} (format!("{m}_hidden.{i}"), o)}, Boundary::TextFinalNorm => ("text_final_norm".into(),0), Boundary::PrefillLogitsAll => ("prefill_logits_all".into(),0), Boundary::StepLogits(k) => ("step_logits".into(), k as u64)};
  let v = if n=="step_logits" { v.unsqueeze(0)? } else { v.clone() };
  self.got.entry(n).or_default().push((o, v.copy()?)); Ok(()) } }
struct Fake { info: MediaInfo, batches: Vec<(Modality,u64,Tensor)>, plan: Option<MediaPlan>, at: usize, text: String, events: usize, last: Instant }
impl JobPort for Fake {
 fn probe(&mut self, _:&str)->Result<MediaInfo,Stop>{Ok(self.info.clone())}
 fn request_decode(&mut self, r: DecodeRequest)->Result<(),Stop>{self.plan=Some(r.plan);Ok(())}
 fn next_tokens(&mut self, take:&mut dyn FnMut(TokenBatch<'_>)->Result<(),Stop>)->Result<(),Stop>{ let (m,o,t)=&self.batches[self.at]; self.at+=1; let w=Wire::from_candle(t)?; take(TokenBatch{v:1,job:JobId::new("x").unwrap(),plan:self.plan.clone().unwrap(),modality:*m,offset:*o,tensor:w}) }
 fn event(&mut self,e:Event)->Result<(),Stop>{ self.events+=1; if let Event::Progress{done,total,..}=&e { if done==total {self.last=Instant::now();} } if let Event::Text{delta}=e{self.text+=&delta;} Ok(()) }
 fn cancelled(&self)->bool{false}
}
fn rel(a:&Tensor,b:&Tensor)->f64{ let a=a.to_dtype(DType::F64).unwrap(); let b=b.to_dtype(DType::F64).unwrap(); let d=(&a-&b).unwrap().sqr().unwrap().mean_all().unwrap().to_scalar::<f64>().unwrap().sqrt(); d/b.sqr().unwrap().mean_all().unwrap().to_scalar::<f64>().unwrap().sqrt() }
fn main(){
 let only=std::env::args().nth(1); let dt=std::env::args().nth(2).unwrap_or("f32".into()); let dtype=match dt.as_str(){"f16"=>DType::F16,"bf16"=>DType::BF16,_=>DType::F32};
 let mut dirs:Vec<_>=std::fs::read_dir("/tmp/golden-ideal").unwrap().map(|e|e.unwrap().path()).collect(); dirs.sort();
 for d in dirs { let name=d.file_name().unwrap().to_str().unwrap().to_owned(); if only.as_ref().is_some_and(|o| o!="all" && *o!=name){continue}
  let j:serde_json::Value=serde_json::from_slice(&std::fs::read(d.join("golden.json")).unwrap()).unwrap();
  let g=candle_core::safetensors::load(d.join("golden.safetensors"),&Device::Cpu).unwrap();
  let ck=Path::new("/tmp/golden/ckpt").join(Path::new(j["checkpoint"].as_str().unwrap()).file_name().unwrap());
  let cp=Arc::new(Checkpoint::open(&ck).unwrap()); let cfg=cp.config().clone();
  let w=Weights::new(cp,dtype,Device::Cpu);
  let t0=Instant::now();
  let mut s=LlmStage::new(&cfg,&w,&ck.join("tokenizer.json"),Settings::default()).unwrap(); let load=t0.elapsed();
  let f=j["frames"].as_u64().unwrap_or(0); let at=j["audio_tokens"].as_u64().unwrap_or(0);
  let info=MediaInfo{v:1,duration_s:j["duration"].as_f64().unwrap(),frames:f,avg_fps:1.0,width:1,height:1,rotation:0,has_audio:at>0,audio_samples:at*1600,container:"".into(),codecs:vec![],content_id:"".into()};
  let mut b=vec![]; if let Some(t)=g.get("audio_tokens"){b.push((Modality::Audio,0,t.to_dtype(dtype).unwrap()))} if let Some(t)=g.get("image_tokens"){b.push((Modality::Image,0,t.to_dtype(dtype).unwrap()))}
  let mut p=Fake{info,batches:b,plan:None,at:0,text:String::new(),events:0,last:Instant::now()};
  let mut req=JobRequest::new(JobId::new("x").unwrap(),"v",j["query"].as_str().unwrap()); req.max_new_tokens=j["max_new_tokens"].as_u64().unwrap() as u32;
  let mut rec=Rec{got:BTreeMap::new(),media:g.contains_key("image_hidden.1")||g.contains_key("audio_hidden.1")};
  let t1=Instant::now();
  let r=s.answer_observed(&req,&mut p,&mut rec).unwrap(); let total=t1.elapsed(); let gen_t=p.last.elapsed();
  let ids:Vec<u32>=j["generated_token_ids"].as_array().unwrap().iter().map(|x|x.as_u64().unwrap() as u32).collect();
  let mut worst=(0f64,String::new()); let mut each=vec![];
  for (n,v) in &mut rec.got { v.sort_by_key(|x|x.0); let Some(want)=g.get(n) else { println!("  no golden {n}"); continue}; let got=Tensor::cat(&v.iter().map(|x|x.1.clone()).collect::<Vec<_>>(),0).unwrap(); let want = if want.dims()!=got.dims() { println!("  shape {n} {:?} {:?}",got.dims(),want.dims()); continue } else {want.clone()}; let e=rel(&got,&want); each.push(format!("{n}:{e:.1e}")); if e>worst.0 {worst=(e,n.clone())} }
  println!("{name:20} ids {} text {} ranges {} finish {:?} worst {:.2e} {} load {load:?} total {total:?} decode/tok {:?} busy {:.3}", r.token_ids==ids, r.text==j["text"].as_str().unwrap() && p.text.trim()==r.text, r.ranges.len(), r.finish, worst.0, worst.1, gen_t/(r.token_ids.len() as u32), r.timings.stages.values().next().unwrap().busy_s);
  if std::env::args().len()>3 {println!("   {}",each.join(" "));}
  let want:Vec<[f64;2]>=serde_json::from_value(j["time_ranges"]["seconds"].clone()).unwrap(); assert_eq!(r.ranges.iter().map(|r|[r.start_s,r.end_s]).collect::<Vec<_>>(),want);
 }
}
