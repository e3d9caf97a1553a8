"""The style sheet and the script of a page. The script shows values under the pointer; the page works without it."""

from __future__ import annotations

STYLE = """
:root{color-scheme:light dark;--bg:#fbfbfa;--card:#fff;--ink:#1c2126;--soft:#57616b;--faint:#87919b;--line:#e3e6e9;
--grid:#edf0f2;--code:#f3f5f6;--good:#1d7a4c;--good-bg:#e6f4ec;--bad:#b3302b;--bad-bg:#fcebea;--warn:#8a5a00;
--warn-bg:#fdf6e5;--info-bg:#e9f0fb;--train:#2a66c4;--eval:#cc5a1c;--c0:#2a66c4;--c1:#cc5a1c;--c2:#1f8a63;--c3:#9345ad;
--c4:#b8860b;--c5:#c2416f;--c6:#2b8fa8;--c7:#6b6f76}
@media(prefers-color-scheme:dark){:root{--bg:#14171a;--card:#1a1e22;--ink:#e4e8eb;--soft:#a4aeb8;--faint:#7c8792;
--line:#2c3238;--grid:#252b31;--code:#22272c;--good:#5fc992;--good-bg:#18322599;--bad:#f08a84;--bad-bg:#3d201f;
--warn:#e6b450;--warn-bg:#382c14;--info-bg:#1c2b42;--train:#71a7f7;--eval:#f29a62;--c0:#71a7f7;--c1:#f29a62;
--c2:#5cc79c;--c3:#c78ae0;--c4:#dcb44a;--c5:#ee82a8;--c6:#62c3da;--c7:#a4a9b0}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;font-variant-numeric:tabular-nums;-webkit-text-size-adjust:100%}
main{max-width:1140px;margin:0 auto;padding:40px 28px 80px}
b,code,pre,li,td,dd,dt,h1{unicode-bidi:isolate}
code,pre,.mono{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace;font-size:.87em}
a{color:var(--train)}
header{margin-bottom:26px}
.eyebrow{color:var(--soft);font-size:13px;margin:0 0 4px}
h1{font-size:29px;line-height:1.2;font-weight:650;letter-spacing:-.015em;margin:0;overflow-wrap:anywhere}
h1 .status{vertical-align:5px;margin-left:12px}
.lead{color:var(--soft);margin:8px 0 0;max-width:75ch;overflow-wrap:anywhere}
.status{display:inline-block;font-size:12.5px;font-weight:600;letter-spacing:.01em;padding:2px 10px;border-radius:99px;
background:var(--info-bg);color:var(--train);line-height:1.5}
.status.finished{background:var(--good-bg);color:var(--good)}
.status.failed{background:var(--bad-bg);color:var(--bad)}
.status.interrupted,.status.killed{background:var(--warn-bg);color:var(--warn)}
h2{font-size:18px;font-weight:640;letter-spacing:-.005em;margin:46px 0 14px}
h2 small{font-size:13px;font-weight:400;color:var(--soft);margin-left:10px;letter-spacing:0}
h2 .legend{display:inline-flex;margin-left:16px;font-weight:400;letter-spacing:0;font-size:13px}
h3{font-size:14px;font-weight:620;margin:26px 0 8px}
p{margin:0 0 10px}
.soft{color:var(--soft)}
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(230px,1fr));gap:14px}
.tile{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:15px 18px 14px;min-width:0}
.tile .name{font-size:13px;color:var(--soft)}
.tile .ends{display:flex;align-items:baseline;gap:9px;margin:3px 0 2px;font-size:25px;font-weight:640;
letter-spacing:-.015em;line-height:1.25}
.tile .before{font-size:17px;font-weight:500;color:var(--faint)}
.tile .arrow{font-size:15px;font-weight:400;color:var(--faint)}
.tile .more{font-size:12.5px;color:var(--soft)}
.up{color:var(--good)}.down{color:var(--bad)}
.strip{display:flex;flex-wrap:wrap;gap:12px 40px;margin:20px 2px 0;padding:0}
.strip div{min-width:0}
.strip dt{font-size:12.5px;color:var(--soft)}
.strip dd{margin:0;font-size:16.5px;font-weight:600}
.strip dd small{font-size:12.5px;font-weight:400;color:var(--soft);margin-left:5px}
.bar{height:6px;border-radius:3px;background:var(--grid);overflow:hidden;margin:18px 0 0;max-width:420px}
.bar i{display:block;height:100%;background:var(--train)}
.notice{border-radius:8px;padding:11px 16px;margin:18px 0 0;font-size:14px;background:var(--warn-bg);
border-left:3px solid var(--warn)}
.notice.bad{background:var(--bad-bg);border-color:var(--bad)}
.notice.info{background:var(--info-bg);border-color:var(--train)}
.notice b{display:block}.notice p{margin:4px 0 0}
.notice pre{margin:6px 0 0;white-space:pre-wrap;overflow-wrap:anywhere;max-height:22em;overflow:auto}
.notice ul{margin:6px 0 0;padding-left:20px}
.card,.chart{background:var(--card);border:1px solid var(--line);border-radius:10px}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(310px,1fr));gap:14px}
.chart{margin:0;padding:13px 18px 14px 14px;min-width:0}
.chart figcaption{font-size:13.5px;margin:0 0 13px 2px;line-height:1.45}
.chart figcaption>div{display:flex;justify-content:space-between;gap:2px 16px}
.chart figcaption b{font-weight:620}
.chart figcaption .under{display:block;color:var(--soft);font-size:12.5px;min-height:18px;white-space:nowrap;
overflow:hidden;text-overflow:ellipsis}
.under code{color:var(--faint);font-size:11.5px}
.legend{display:flex;flex-wrap:wrap;gap:0 14px;font-size:12.5px;color:var(--soft)}
.key i{display:inline-block;width:14px;height:3px;border-radius:2px;margin-right:6px;vertical-align:3px;
background:currentColor}
.plot{position:relative;height:136px;margin-bottom:21px;touch-action:pan-y}
.big .plot{height:300px}
.plot svg{position:absolute;inset:0;width:100%;height:100%;overflow:visible;display:block}
.plot path{fill:none;vector-effect:non-scaling-stroke;stroke:currentColor;stroke-width:1.7;stroke-linejoin:round;
stroke-linecap:round}
.plot path.grid{stroke:var(--grid);stroke-width:1}
.plot path.raw{opacity:.33;stroke-width:1}
.plot path.dots{stroke-width:6}
.big .plot path.line{stroke-width:2.1}.big .plot path.raw{stroke-width:1.1}.big .plot path.dots{stroke-width:7}
.train{color:var(--train)}.eval{color:var(--eval)}
.c0{color:var(--c0)}.c1{color:var(--c1)}.c2{color:var(--c2)}.c3{color:var(--c3)}.c4{color:var(--c4)}.c5{color:var(--c5)}
.c6{color:var(--c6)}.c7{color:var(--c7)}
.plot span{position:absolute;font-size:11.5px;line-height:1;color:var(--faint);white-space:nowrap}
.plot .y{right:100%;margin-right:9px;transform:translateY(-50%)}
.plot .x{top:100%;margin-top:9px;transform:translateX(-50%)}
.plot .xname{top:100%;right:0;margin-top:9px}
.plot path.mark{stroke:none;fill:currentColor;opacity:.16}
.mark.error{color:var(--bad)}.mark.warning{color:var(--warn)}.mark.info{color:var(--train)}
.plot span.mark{top:-12px;font-size:10.5px;opacity:.9}.plot span.mark.error{color:var(--bad)}
.plot span.mark.warning{color:var(--warn)}.plot span.mark.info{color:var(--train)}
.plot path.span{stroke:none;fill:currentColor}.plot path.span.calm{opacity:.3}
.times{margin-top:14px}.times .plot{height:150px}
.side-of{display:flex;flex-wrap:wrap;gap:0 16px;font-size:13.5px;align-items:baseline}.side-of b{min-width:5em}
.finding{background:var(--card);border:1px solid var(--line);border-left:3px solid var(--train);border-radius:8px;
padding:11px 16px 10px;margin:0 0 10px;font-size:14px;overflow-wrap:anywhere}
.finding.warning{border-left-color:var(--warn)}.finding.error{border-left-color:var(--bad)}.finding.over{opacity:.75}
.finding small{color:var(--soft);margin-left:10px}.finding p{margin:5px 0 0}.finding ul,.finding ol{margin:6px 0 0;
padding-left:20px}
.finding ul.evidence{list-style:none;padding:0;display:flex;flex-wrap:wrap;gap:2px 22px;color:var(--soft);
font-size:13px}
.finding pre.patch{margin:3px 8px;padding:3px 9px;border-radius:5px;background:var(--code);display:inline-block;
vertical-align:middle}
.finding .chip.error{background:var(--bad-bg);color:var(--bad)}.finding .chip.warning{background:var(--warn-bg);
color:var(--warn)}
.finding .chip.info{background:var(--info-bg);color:var(--train)}
.odd{color:var(--bad);font-size:12.5px;margin:-6px 0 8px 2px}
.none{color:var(--soft);margin:0 2px}
#tip{position:fixed;z-index:9;pointer-events:none;background:var(--card);border:1px solid var(--line);border-radius:7px;
padding:6px 10px;font-size:12.5px;line-height:1.5;box-shadow:0 4px 14px #0002;display:none;white-space:nowrap}
#tip i{display:inline-block;width:9px;height:9px;border-radius:50%;margin-right:7px;background:currentColor}
#tip b{font-weight:620;margin-left:8px}
.plot .cursor{position:absolute;top:0;bottom:0;width:1px;background:var(--faint);opacity:.6;pointer-events:none}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:10px}
table{border-collapse:collapse;width:100%;font-size:13.5px}
th{font-weight:500;color:var(--soft);text-align:left;font-size:12.5px;white-space:nowrap}
th,td{padding:7px 16px;vertical-align:top}
tr+tr td,thead+tbody td{border-top:1px solid var(--line)}
td{overflow-wrap:break-word}table.config td:nth-child(2){overflow-wrap:anywhere}
td:first-child{white-space:nowrap}
.num{text-align:right;white-space:nowrap}
table.config td:first-child{width:280px}
table.config td:last-child{color:var(--soft);white-space:nowrap;width:200px}
td .swatch{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:8px;background:currentColor}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(310px,1fr));gap:0 34px;margin:0;font-size:13.5px}
.facts div{display:flex;justify-content:space-between;gap:18px;border-bottom:1px solid var(--line);padding:6px 0;
min-width:0}
.facts dt{color:var(--soft);flex:none;max-width:60%;overflow-wrap:anywhere}
.facts dd{margin:0;text-align:right;overflow-wrap:anywhere;min-width:0}
.halves{display:grid;grid-template-columns:repeat(auto-fit,minmax(310px,1fr));gap:0 34px}
.halves h3{margin-top:0}.halves .facts{grid-template-columns:1fr;margin-bottom:18px}
.grid.four{grid-template-columns:repeat(auto-fill,minmax(250px,1fr))}
.sample{background:var(--card);border:1px solid var(--line);border-radius:10px;margin:0 0 14px;overflow:hidden}
.sample .prompt{padding:12px 18px 13px;border-bottom:1px solid var(--line)}
.sides{display:grid;grid-template-columns:repeat(auto-fit,minmax(280px,1fr))}
.side{padding:11px 18px 14px;min-width:0;border-left:1px solid var(--line);margin-left:-1px}
.rolled .side{border-bottom:1px solid var(--line);margin-bottom:-1px}
.sample pre.logged{margin-top:7px;color:var(--soft);font-size:12px}
.side.ref{border-left:1px solid var(--line);background:var(--code)}
.label{display:flex;flex-wrap:wrap;gap:4px 10px;align-items:center;justify-content:space-between;font-size:12px;
color:var(--soft);margin-bottom:5px;min-height:22px}
.sample pre{margin:0;white-space:pre-wrap;overflow-wrap:anywhere;max-height:17em;overflow:auto;unicode-bidi:isolate;
font-size:13px;line-height:1.5}
.turn{color:var(--faint);font-size:12px;margin-top:4px}
.empty{color:var(--faint);font-style:italic}
.chip{display:inline-block;overflow-wrap:normal;border-radius:99px;padding:1px 9px;font-size:12px;
background:var(--code);color:var(--soft)}
.chip.good{background:var(--good-bg);color:var(--good)}
.chip.exp{background:var(--warn-bg);color:var(--warn)}
.chip.bad{background:var(--bad-bg);color:var(--bad)}
details{margin:12px 0 0}
summary{cursor:pointer;color:var(--soft);font-size:13.5px;padding:3px 0}
details[open]>summary{margin-bottom:10px}
pre.block{background:var(--code);border-radius:8px;padding:13px 16px;margin:0 0 12px;overflow:auto;line-height:1.55}
tr.warning td{background:var(--warn-bg)}tr.error td{background:var(--bad-bg)}
footer{margin-top:56px;padding-top:14px;border-top:1px solid var(--line);font-size:12.5px;color:var(--faint)}
@media(max-width:640px){main{padding:24px 16px 60px}h1{font-size:23px}.big .plot{height:220px}.big .x.more{display:none}
.grid,.facts{grid-template-columns:1fr}.strip{gap:12px 28px}}
@media print{.chart,.sample,.tile{break-inside:avoid}}
"""

SCRIPT = """
(function(){
var tip=document.createElement('div');tip.id='tip';document.body.appendChild(tip);
function near(xs,x){var a=0,b=xs.length-1;while(b-a>1){var m=(a+b)>>1;if(xs[m]<x)a=m;else b=m}
return Math.abs(xs[a]-x)<=Math.abs(xs[b]-x)?a:b}
function show(v){if(v===null)return 'NaN or infinite';var a=Math.abs(v);
return a>=1000&&a<1e7?Math.round(v).toLocaleString('en'):String(+v.toPrecision(4))}
document.querySelectorAll('[data-chart]').forEach(function(plot){
var data=JSON.parse(plot.dataset.chart),cursor=document.createElement('div');cursor.className='cursor';
function hide(){tip.style.display='none';if(cursor.parentNode)cursor.remove()}
plot.addEventListener('pointerleave',hide);
plot.addEventListener('pointermove',function(event){
var box=plot.getBoundingClientRect(),want=data.x[0]+(event.clientX-box.left)/box.width*(data.x[1]-data.x[0]);
var step=null;data.lines.forEach(function(l){var s=l.x[near(l.x,want)];
if(step===null||Math.abs(s-want)<Math.abs(step-want))step=s});
tip.textContent='';var head=document.createElement('div');head.textContent='step '+step.toLocaleString('en');
tip.appendChild(head);
data.lines.forEach(function(l){var i=near(l.x,step),row=document.createElement('div'),dot=document.createElement('i');
var gap=(data.x[1]-data.x[0])/40;if(Math.abs(l.x[i]-step)>gap)return;
dot.className=l.c;row.appendChild(dot);
row.appendChild(document.createTextNode(l.n+(l.x[i]===step?'':' (step '+l.x[i].toLocaleString('en')+')')));
var b=document.createElement('b');b.textContent=show(l.y[i]);row.appendChild(b);tip.appendChild(row)});
cursor.style.left=(step-data.x[0])/(data.x[1]-data.x[0])*100+'%';plot.appendChild(cursor);
tip.style.display='block';
var w=tip.offsetWidth,left=event.clientX+16;if(left+w>innerWidth-8)left=event.clientX-w-16;
tip.style.left=Math.max(4,left)+'px';tip.style.top=Math.max(4,event.clientY-tip.offsetHeight-12)+'px'})})
})();
"""
