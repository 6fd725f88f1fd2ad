# %% [markdown] key="title" lang="zh" partner="93b0f851"
# # 09 · 引擎
#
# 你的服务跑在 `transformers` 上，流量涨了一倍。同事转来一篇博客：「换 vLLM，快 24 倍。」另一位说：「不如租 API，连显卡都省了。」
# 运维只问一句：「周五晚上它要是起不来，怎么退回去？」
#
# 学完这一课，你能做三件事：
#
# - 不改一行代码，用一个配置词换引擎、退回去，并说得出每个设置从哪儿来；
# - 只凭 token 到达的时刻，量出任何引擎（包括远处的服务器）的步时，预言它干完一堆活要多久；
# - 分清一个「快 N 倍」里有多少来自引擎，多少来自你的流量。

# %% [markdown] key="title" lang="en" partner="5a694060"
# # 09 · Engines
#
# Your service runs on `transformers`, and traffic has doubled. A colleague forwards a blog post: "Change to vLLM,
# it is 24 times faster." Another says: "Rent an API and be rid of the cards." Operations ask one thing: "And when
# it doesn't start on a Friday night, how do we go back?"
#
# After this lesson you can
#
# - change engines and go back with one word of configuration and no line of code, and say of every setting
#   where it comes from;
# - learn the step time of any engine, even of a server far away, from nothing but the times at which tokens
#   come, and predict how long a heap of work will take it;
# - tell how much of an "N times faster" is the engine and how much is your traffic.

# %% key="imports"
import sys
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from servinglib.config import load_configuration, open_engine
from servinglib.course import check, hint
from servinglib.engines.registry import ENGINES, load_engine
from servinglib.errors import ServingError
from servinglib.experiments import engine_visits
from servinglib.experiments.retrieval import Corpus, Retriever
from servinglib.experiments.retrieval_study import compare_layouts, questions_about
from servinglib.plots import MEASURED, SIMULATED, THEORY, figure
from servinglib.server.process import ServerProcess
from servinglib.workload import RequestSpec

# %% [markdown] key="predict" lang="zh" partner="4548256a"
# ## 先押注
#
# 同一台机器、同样的权重、16 个座位，64 个请求，回答长度从 1 到 64 均匀分布。vLLM 每秒输出的 token 是 `transformers` 的几倍？
# 如果所有回答**一样长**呢？

# %% [markdown] key="predict" lang="en" partner="dfc42fc2"
# ## Place your bet
#
# One machine, the same weights, 16 seats, 64 requests whose answers have 1 to 64 tokens, all lengths equally
# likely. How many times the output tokens per second of `transformers` does vLLM give? And if all answers were
# **equally long**?

# %% key="guess"
guesses = {"mixed lengths": 10.0, "equal lengths": 5.0}

# %% [markdown] key="same" lang="zh" partner="05e959e6"
# ## 一个请求，四个引擎
#
# 四种东西都能回答一个提示：`transformers`（静态批）、我们自己的引擎（连续批处理）、vLLM，还有一台**讲 OpenAI 协议的服务器**，
# 引擎在别人的进程里，也许在别人的机房里。它们差别很大，但在这门课里只有一个样子：
#
# | 方法 | 做什么 |
# | --- | --- |
# | `generate(prompts)` | 一批提示，一批回答 |
# | `stream(prompt)` | 一个 token 一个事件，带着它被知道的时刻 |
# | `abort(id)` | 下一个 token 处停下 |
# | `counters` | 引擎自己数的：前缀命中、KV 占用、抢占、猜中的 token |
# | `capabilities` | 它会什么，不必从名字去猜 |
#
# 下面先起一台真的服务器：`ServerProcess` 选一个空端口，等它能回答为止，离开 `with` 时连子进程一起收走。
# 这里是我们自己的服务；换成 `vllm.entrypoints.openai.api_server`、`trtllm-serve` 或 llama.cpp 的服务，只是换一条命令。

# %% [markdown] key="same" lang="en" partner="2af25d54"
# ## One request, four engines
#
# Four things can answer a prompt: `transformers` (static batches), our own engine (continuous batching), vLLM, and
# **a server that speaks OpenAI's protocol**, whose engine lives in somebody else's process and perhaps in somebody
# else's building. They differ a lot, and in this course they all look alike:
#
# | method | what it does |
# | --- | --- |
# | `generate(prompts)` | a batch of prompts, a batch of answers |
# | `stream(prompt)` | an event for each token, with the time at which it was known |
# | `abort(id)` | stop at the next token |
# | `counters` | what the engine counts itself: prefix hits, KV in use, preemptions, guesses that stayed |
# | `capabilities` | what it can do, so that nobody guesses from its name |
#
# First a real server: `ServerProcess` picks a free port, waits until the server answers, and at the end of a `with`
# takes its child processes along. Here it is our own service; with `vllm.entrypoints.openai.api_server`, `trtllm-serve` or
# llama.cpp's server, only the command would be another.

# %% key="server"
SEATS = 16
serve = [sys.executable, "-m", "servinglib", "serve", "--engine", "continuous", "--model", "course-tiny"]
serve += ["--set", "dtype=float32", "--set", f"max_num_seqs={SEATS}", "--port", "{port}"]
server = ServerProcess(serve, ready="/ready")
print(f"ready: {server.base_url}")

# %% key="choices"
SETTINGS = {
    "transformers": ["dtype=float32"],
    "continuous": ["dtype=float32", f"max_num_seqs={SEATS}"],
    "vllm": ["dtype=float32", f"max_num_seqs={SEATS}", "enforce_eager=true", "cpu_kvcache_space=0.5"],
    "openai": [f"base_url={server.base_url}/v1"],
}
if find_spec("vllm") is None:  # on macOS and Windows, or before `make vllm`
    del SETTINGS["vllm"]
    print("vLLM is not installed here, so it is left out; `make vllm` installs it on Linux")
for name in SETTINGS:
    can = ENGINES[name]
    print(f"{name:13s} package: {can.package or 'torch'}")


def choose(name):
    return load_configuration(engine=name, model="course-tiny", settings=SETTINGS[name], environ={})


# %% [markdown] key="same-text" lang="zh" partner="a466359b"
# `float32` 下贪心解码没有平局可言，所以四个引擎该说出**同样的 token**。不一样的是时刻。

# %% [markdown] key="same-text" lang="en" partner="134d0cbf"
# In `float32`, greedy decoding knows no ties to speak of, so four engines should say **the same tokens**. What
# differs is when.

# %% key="visit"
prompts = ["def fibonacci(n):", "class Stack:\n", "import os\n", "for i in range("]
mixed = engine_visits.backlog(64, SEATS, longest=64)
equal = [RequestSpec(0.0, 16, 32)] * 64
laws, gaps, answers, rates = {}, {}, {}, {"mixed lengths": {}, "equal lengths": {}}


def visit(name):
    with open_engine(choose(name)) as engine:  # one at a time: two engines would share the cores
        engine.warm_up()
        answers[name] = [a.token_ids for a in engine.generate(prompts, max_tokens=24, ignore_eos=True)]
        laws[name], gaps[name] = engine_visits.learn_step_time(engine, (1, 4, SEATS))
        for what, work in (("mixed lengths", mixed), ("equal lengths", equal)):
            rates[what][name] = engine_visits.rates(engine, laws[name], work, SEATS)


visit("transformers")
visit("continuous")

# %% key="visit-vllm"
if "vllm" in SETTINGS:
    visit("vllm")

# %% key="visit-server"
visit("openai")
server.stop()
first = np.array(answers["transformers"])
for name, told in answers.items():
    print(f"{name:13s} {(np.array(told) == first).sum()} of {first.size} tokens as transformers")

# %% [markdown] key="step" lang="zh" partner="c3053b7d"
# ## 只看 token 什么时候来
#
# 别人的引擎不会把步记录给你看。但一步一个 token，**两个 token 之间就是一步**。同时放 $n$ 个请求，量平均间隔，就有了
#
# $$\tau(n)=a+b\,n$$
#
# 首 token 比一个间隔多花的时间，除以提示的 token 数，就是预填充的单价 $d$。三个数，全从客户端看来。

# %% [markdown] key="step" lang="en" partner="955b5e7f"
# ## Watching only when tokens come
#
# Nobody shows you the step records of his engine. But a step gives one token to each, so **from one token to the
# next is a step**. Put in $n$ requests at once, take the mean gap, and you have
#
# $$\tau(n)=a+b\,n$$
#
# What the first token takes beyond a gap, divided by the tokens of the prompts, is $d$, the price of a prompt
# token. Three numbers, all seen by a client.

# %% key="step-code"
fig, ax = figure("A step, seen from outside", "requests at once", "from a token to the next (ms)")
fine = np.linspace(1, SEATS, 2)
for name, law in laws.items():
    [line] = ax.plot(fine, [law(n, 0, 0) * 1e3 for n in fine], linewidth=1.4, marker="", label=name)
    ax.plot(
        list(gaps[name]), [1e3 * g for g in gaps[name].values()], "o", color=line.get_color(), markersize=4
    )
    print(
        f"{name:13s} a {law.a * 1e3:6.2f} ms   b {law.b * 1e3:6.3f} ms   d {law.d * 1e3:6.3f} ms a prompt token"
    )
ax.set_ylim(0)
_ = ax.legend()

# %% [markdown] key="step-reading" lang="zh" partner="dba410dc"
# `course-tiny` 很小，一步里大半是引擎自己的开销，所以这张图画的是**开销**：$a$ 大的引擎，在小模型上吃亏，在大模型上就看不出来了。
# 经过 HTTP 的那条线，比同一个引擎在进程里多出来的，是切事件、过套接字、再拼起来的钱，按 token 收。

# %% [markdown] key="step-reading" lang="en" partner="95c947e7"
# `course-tiny` is small, and most of a step is the engine's own work, so what is drawn here is **overhead**: an
# engine with a large $a$ suffers on a small model, and on a large one nobody would see it. What the line over
# HTTP has beyond the same engine in this process is the price of making events, sending them through a socket
# and putting them together again, charged per token.

# %% [markdown] key="backlog" lang="zh" partner="65fdc0f9"
# ## 三列：一堆长短不一的活
#
# 64 个请求，16 个座位，回答长度在 $1$ 到 $L$ 之间均匀，$L=64$。静态批是班车：每车要等最长的那个，$b$ 个均匀数的最大值平均是
#
# $$E[\max]=\frac{L\,b}{b+1}+\frac{1}{2}$$
#
# 连续批处理是缆车：座位一空就坐下一个，每步都有 $b$ 个有用的 token。班车每步的有用份额只有 $(L+1)/2$ 比 $E[\max]$，
# 所以单凭**不浪费座位**，缆车的好处是
#
# $$\frac{E[\max]}{(L+1)/2}\approx\frac{2b}{b+1}$$
#
# $b=16$ 时约 1.9，再乘上两个引擎步时之比，就是该押的数。仿真用同样的三个数：班车逐车相加，缆车由 `StepPlanner` 一步步排。
# 两列都在真引擎动手**之前**算好。

# %% [markdown] key="backlog" lang="en" partner="2283f297"
# ## Three columns: a heap of work of all lengths
#
# There are 64 requests, 16 seats, and answers of $1$ to $L$ tokens, all equally likely,
# with $L=64$. Static batches
# are coaches: each waits for its longest, and the largest of $b$ uniform numbers is on average
#
# $$E[\max]=\frac{L\,b}{b+1}+\frac{1}{2}$$
#
# Continuous batching is a ski lift: whoever is next takes a seat as it comes free, and every step makes $b$ tokens
# of use. Of a coach's step only $(L+1)/2$ to $E[\max]$ is of use, so merely by **wasting no seats**, the lift gains
#
# $$\frac{E[\max]}{(L+1)/2}\approx\frac{2b}{b+1}$$
#
# About 1.9 for $b=16$; times the ratio of the two engines' steps, that is the number to bet. The simulation takes
# the same three numbers: coaches are added up, the lift goes step by step with `StepPlanner`. Both columns are
# computed **before** the real engine begins.

# %% key="backlog-code"
print("output tokens/s, mixed lengths    theory  simulated  measured     off")
done = rates["mixed lengths"]
for name, rate in done.items():
    off = rate.simulated / rate.measured - 1
    print(f"{name:31s}{rate.theory:9.0f}{rate.simulated:11.0f}{rate.measured:10.0f}{off:+8.0%}")
fig, ax = figure("The same heap, four engines", "", "output tokens/s")
dash = THEORY | {"marker": "_", "markersize": 26}
for column, style in (("theory", dash), ("simulated", SIMULATED), ("measured", MEASURED)):
    values = [getattr(rate, column) for rate in done.values()]
    ax.plot(range(len(done)), values, label=column, **style | {"linestyle": ""})
ax.set_xticks(range(len(done)), done)
ax.set(ylim=(0, 1.15 * max(r.measured for r in done.values())), xlim=(-0.5, len(done) - 0.5))
_ = ax.legend()

# %% [markdown] key="backlog-reading" lang="zh" partner="be5008f9"
# 仿真比理论低一点：快结束时座位坐不满，理论里没有这个尾巴。实测若偏离得多，先怀疑机器：步时是几秒前学的，
# 共享的机器几秒里能变两成。`off` 两边都大而方向相同，就是它。
#
# 隔着 HTTP 的那一行是另一回事：预言多半**偏低**。一个请求要建连接、拆 JSON，学步时的时候 16 个请求同时等这笔钱，全算进了 $d$；
# 一大堆活里，别人的步正好盖住它。从外面看，分不清哪段时间占着引擎、哪段没占：第 14 课的标定专门来分。

# %% [markdown] key="backlog-reading" lang="en" partner="114cf57b"
# The simulation lies a little below the theory: towards the end seats stay empty, and the theory has no such tail.
# Where the measurement is far off, suspect the machine first: the steps were learnt seconds before, and a shared
# machine can change by a fifth within seconds. If `off` is large everywhere and to the same side, it is that.
#
# The row over HTTP is another matter: its prediction tends to be **too low**. A request has to be connected and
# parsed; while the steps were learnt, 16 requests waited for that together, and all of it went into $d$. In a heap
# of work, the steps of others cover it. From outside, time that occupies the engine looks like time that does
# not: the calibration of lesson 14 tells them apart.

# %% key="settle"
factor = (64 * SEATS / (SEATS + 1) + 0.5) / (65 / 2)
rival = "vllm" if "vllm" in done else "continuous"
print(f"wasting no seats alone: x{factor:.2f}")
for what, table in rates.items():
    ratio = table[rival].measured / table["transformers"].measured
    theory = table[rival].simulated / table["transformers"].simulated
    print(
        f"{what}: you said x{guesses[what]:.1f}; simulated x{theory:.2f}, measured {rival}/transformers x{ratio:.2f}"
    )

# %% [markdown] key="literature" lang="zh" partner="94b58ef3"
# ## 「快 24 倍」从哪里来
#
# vLLM 的发布博客写着比 `transformers` 高至 24 倍，论文写着比当时的服务系统高 2 到 4 倍。都是真的，也都是**那次**的：A100，
# 13B 的模型，ShareGPT 的长度分布（长短相差百倍），KV 显存不够用，对手用静态批且按最长预留显存。把这些一项项去掉：
#
# | 去掉什么 | 倍数还剩什么 |
# | --- | --- |
# | 长短相差悬殊 → 一样长 | 座位不再浪费，$2b/(b+1)$ 没了 |
# | 显存不够 → 够用 | 分页省下的座位没处用 |
# | GPU 内核 → CPU | 双方都在等同一个 oneDNN 和同一条内存总线 |
# | 大模型 → 小模型 | 引擎自己的 $a$ 变成主角 |
#
# 所以别人的倍数是个提示，不是预算。你的倍数由三样决定：步时之比（用上面的办法量）、长度分布（用日志算）、显存（第 05 课）。
# 在你自己的机器上跑完整的比较，用 `servinglib bench engine --engines transformers,continuous,vllm`。
#
# H200 上的记录还没有；有了以后，`servinglib bench gpu` 存下的那份会和你的结果并排出现在这里。

# %% [markdown] key="literature" lang="en" partner="a403c78d"
# ## Where "24 times faster" comes from
#
# vLLM's launch post says up to 24 times `transformers`, the paper says 2 to 4 times the serving systems of its day.
# Both are true, and both are true **of that day**: an A100, a model of 13B, the lengths of ShareGPT (a hundredfold
# apart), too little memory for KV, and an opponent with static batches that reserves for the longest. Take these
# away one by one:
#
# | take away | what is left of the factor |
# | --- | --- |
# | very different lengths → equal ones | no seats are wasted any more, $2b/(b+1)$ is gone |
# | too little memory → enough | pages save seats that nobody needs |
# | GPU kernels → a CPU | both wait for the same oneDNN and the same memory bus |
# | a large model → a small one | the engine's own $a$ plays the lead |
#
# So other people's factors are a hint and no budget. Yours depends on three things: the ratio of step times (measure
# it as above), the lengths (count them in your logs), and memory (lesson 05). For the whole comparison on your
# machine, run `servinglib bench engine --engines transformers,continuous,vllm`.
#
# There is no record from an H200 yet; once `servinglib bench gpu` has stored one, it will stand here beside yours.

# %% [markdown] key="switch" lang="zh" partner="31a0c742"
# ## 换引擎是一个词，退回去也是
#
# 设置有四个来源，后说的算数：默认值 < `serving.yaml` < 环境变量 < 命令行。每个值都记着是谁说的，
# `servinglib config show` 打印的就是这张表。

# %% [markdown] key="switch" lang="en" partner="1b47b687"
# ## Changing engines is one word, and so is going back
#
# Settings come from four sources, and whoever speaks later is right: default < `serving.yaml` < environment <
# command line. Each value remembers who said it; `servinglib config show` prints this table.

# %% key="switch-code" tags=["nbval-check-output"]
folder = Path(tempfile.mkdtemp())
file = folder / "serving.yaml"
file.write_text(
    "engine: vllm          # going back is this word: transformers\n"
    "model: course-tiny\n"
    "vllm:\n"
    "  max_model_len: 1024\n"
    "  max_num_seqs: 64\n"
)
found = load_configuration(
    file, environ={"VLLM_MAX_NUM_SEQS": "32"}, settings=["enable_prefix_caching=false"]
)
print(f"{'engine':28s}{found.engine:9s}{found.said('engine').replace(str(folder), '.')}")
for key in ("max_model_len", "max_num_seqs", "enable_prefix_caching", "dtype"):
    value, origin = found.options.get(key, ""), found.origin("vllm", key).replace(str(folder), ".")
    print(f"{'vllm.' + key:28s}{value!s:9s}{origin}")
back = load_configuration(file, environ={"SERVINGLIB_ENGINE": "transformers"})
print(f"rolled back: {back.engine}, because of {back.said('engine')}")

# %% [markdown] key="refuse" lang="zh" partner="fb61c32c"
# 打错一个字，要在加载**之前**知道，而不是半分钟以后，更不是永远不知道。下面每一条都不到一秒，什么进程也没起。

# %% [markdown] key="refuse" lang="en" partner="a499d354"
# Who mistypes wants to know **before** anything loads, not half a minute later, and certainly not never. Each of
# these takes less than a second and starts no process.

# %% key="refuse-code" tags=["nbval-check-output"]
(typo := folder / "typo.yaml").write_text("engine: vllm\nvllm:\n  max_num_seq: 64\n")
wrong = {
    "a typo in the file": {"file": typo},
    "a typo in a variable": {"environ": {"SERVINGLIB_ENGINE": "vlm"}},
    "a wrong type": {"environ": {"SERVINGLIB_ENGINE": "vllm", "VLLM_MAX_NUM_SEQS": "many"}},
    "out of range": {"engine": "vllm", "settings": ["gpu_memory_utilization=1.5"]},
    "a contradiction": {"engine": "vllm", "settings": ["gpu_memory_utilization=0.5", "cpu_kvcache_space=4"]},
    "a missing feature": {"engine": "transformers", "settings": ["speculative=prompt-lookup"]},
}
for name, said in wrong.items():
    try:
        load_configuration(**{"environ": {}} | said)
    except ServingError as error:
        print(f"{name}: {str(error).replace(str(folder) + '/', '')}\n")

# %% [markdown] key="fallback" lang="zh" partner="53f94251"
# 那周五晚上呢？`fallback: transformers` 的意思是：起不来就用它顶上，**并且说出来**。没写这一行，起不来就是错误。
# 悄悄换掉引擎，等于悄悄换掉了延迟和账单。下面要一个这里没装的引擎。

# %% [markdown] key="fallback" lang="en" partner="022fd0a7"
# And that Friday night? `fallback: transformers` means: if it doesn't start, take this one, **and say so**. Without
# that line, what doesn't start is an error. Changing the engine silently would change latency and bill silently.
# The cell asks for an engine that is not installed here.

# %% key="fallback-code"
missing = next((name for name in ("sglang", "vllm") if not ENGINES[name].is_installed), None)
if missing is None:
    print("every engine is installed here, so nothing has to fall back")
else:
    asked = load_configuration(engine=missing, environ={}, settings=["fallback=transformers"])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with open_engine(asked) as engine:
            print(f"asked for {missing}, served by {engine.name}")
    print(*(str(each.message) for each in said if "serves instead" in str(each.message)))

# %% [markdown] key="rag" lang="zh" partner="eccffda7"
# ## 引擎只是一个零件：检索增强
#
# 一个小服务：从这门课的正文里检索三段（TF-IDF），拼成提示，交给引擎。换引擎仍然是一个词。值得看的是**拼的顺序**：
# 热门的话题常被问起，检索到的段落常常一样；段落放前面，前缀缓存就能接着用，问题放前面，就每次从头算（第 08 课）。
#
# `course-tiny` 的回答不通顺，这里不看它说什么，只看服务它花了多少。

# %% [markdown] key="rag" lang="en" partner="4eb0e0d3"
# ## The engine as a part: retrieval
#
# A small service: find three passages in the text of this course (TF-IDF), build the prompt, hand it to an engine.
# Changing engines is one word, as before. What is worth watching is **the order of the parts**: popular subjects
# are asked about often, and their passages are often the same. With the passages first, the prefix cache carries
# on from them; with the question first, everything is computed anew each time (lesson 08).
#
# `course-tiny` writes no sensible answers; look at what serving them costs, not at what they say.

# %% key="rag-code"
retriever = Retriever(corpus := Corpus.from_lessons())
questions = questions_about(corpus.topics[:20], 24, exponent=1.0, seed=1)
with load_engine("continuous", "course-tiny", dtype="float32", kv_cache_memory="256MiB") as engine:
    study = compare_layouts(engine, retriever, questions, budget=768, max_tokens=4)
for run in (study.passages_first, study.question_first):
    ttft = 1e3 * np.median(run.ttft)
    print(f"{run.layout:16s} {run.hit_rate:6.1%} of the prompt tokens found, median TTFT {ttft:5.1f} ms")
print(
    f"prompt tokens to compute: x{study.computed_ratio:.2f} with the question first; TTFT x{study.ttft_ratio:.2f}"
)

# %% [markdown] key="breaks" lang="zh" partner="43725ad2"
# ## 什么会让它失灵
#
# **「OpenAI 兼容」不是一个标准。** 有的服务器第一个事件是空的；有的一个事件里塞好几个 token；有的不说 `usage`；
# 有的把 429 写成 503。所以客户端要数 token 而不是数事件，要认空事件，断流要当错误而不是当结束。
#
# **重试也会伤人。** 服务器说 429，一千个客户端同时半秒后再来，就是一场风暴。要听 `Retry-After`，要加随机，
# 而且**给过 token 就不能再试**：读者会看到两个开头。
#
# **进程会比你活得久。** vLLM 的引擎是单独的进程；主进程被 `kill -9`，它照样占着显存。这里有一个看守进程盯着管道，
# 主人一死就收摊；Kubernetes 里这份活由容器来干。
#
# **贪心不等于相同。** `bfloat16` 下两个 logit 常常打平，批的大小一变，算法一换，选的就不是同一个。验收新引擎要看任务得分，不要逐字比较。

# %% [markdown] key="breaks" lang="en" partner="a7f6874c"
# ## What breaks it
#
# **"OpenAI-compatible" is no standard.** Some servers send an empty first event, some put several tokens into one,
# some tell no `usage`, some say 503 where they mean 429. So a client counts tokens and not events, knows empty
# ones, and takes a stream that is cut for an error and not for an end.
#
# **Retries hurt, too.** A server says 429, and a thousand clients come back together half a second later: a storm.
# Heed `Retry-After`, add chance, and **never try again once a token was delivered**, or the reader sees two
# beginnings.
#
# **Processes outlive you.** vLLM's engine is a process of its own; `kill -9` its parent and it keeps holding the
# card's memory. Here a guard watches a pipe and clears up when the owner dies; on Kubernetes the container does it.
#
# **Greedy is not the same as equal.** In `bfloat16` two logits often tie, and another batch size or another kernel
# picks the other one. Judge a new engine by its score on your task, not letter by letter.

# %% [markdown] key="exercises" lang="zh" partner="10394ac1"
# ## 练习
#
# 写完运行单元格，`check` 会给出最小的失败例子和可能的原因。`hint("09.1")` 给提示。
#
# **09.1** 四个字典：默认值、文件、环境变量、命令行。返回字典：每个键对应 `(value, origin)`，即值和来源，来源是 `"default"`、`"file"`、
# `"environment"` 或 `"flag"`。后说的算数。

# %% [markdown] key="exercises" lang="en" partner="dc84b9cf"
# ## Exercises
#
# Run the cell when you have written your answer: `check` shows the smallest case that fails and the likely
# cause. `hint("09.1")` gives a hint.
#
# **09.1** Four dictionaries: defaults, file, environment, command line. Return a dictionary from each key to
# `(value, origin)`, where the origin is `"default"`, `"file"`, `"environment"` or `"flag"`. Whoever speaks later is
# right.


# %% key="ex1" exercise="09.1" tags=["nbval-check-output"]
def effective(defaults, file, environment, flags):
    raise NotImplementedError


check("09.1", effective)


# %% key="ex1-solution" solution="09.1" tags=["nbval-check-output"]
def effective(defaults, file, environment, flags):
    found = {}
    sources = {"default": defaults, "file": file, "environment": environment, "flag": flags}
    for origin, settings in sources.items():
        found.update({key: (value, origin) for key, value in settings.items()})
    return found


check("09.1", effective)

# %% [markdown] key="exercise2" lang="zh" partner="4e3bb7a6"
# **09.2** `lengths` 是回答的长度（token 数），按到达的次序；`seats` 是座位数。返回两个数：静态批要走几步，连续批处理要走几步。
# 请求全都在等，预填充不计。

# %% [markdown] key="exercise2" lang="en" partner="4b231bed"
# **09.2** `lengths` holds the lengths of answers in tokens, in order of arrival; `seats` is how many go at once.
# Return two numbers: the steps in static batches, and the steps with continuous batching. All requests are there,
# and prefill does not count.


# %% key="ex2" exercise="09.2" tags=["nbval-check-output"]
def steps_needed(lengths, seats):
    raise NotImplementedError


check("09.2", steps_needed)


# %% key="ex2-solution" solution="09.2" tags=["nbval-check-output"]
def steps_needed(lengths, seats):
    coaches = sum(max(lengths[i : i + seats]) for i in range(0, len(lengths), seats))
    free = [0] * seats  # when each seat comes free
    for length in lengths:
        seat = free.index(min(free))
        free[seat] += length
    return coaches, max(free)


check("09.2", steps_needed)

# %% [markdown] key="exercise3" lang="zh" partner="b4f7b87b"
# **09.3** 服务器用事件流（server-sent events）回答：每个事件是以 `data:` 开头的行，后面一个空行；以冒号开头的行是注释；
# `data: [DONE]` 表示说完了。`pieces` 是网络给你的字节段，可能在任何地方撕开。返回各事件的文字，不含 `[DONE]`；没有结束的事件不算。

# %% [markdown] key="exercise3" lang="en" partner="afeed7e2"
# **09.3** A server answers in server-sent events: each is a line that begins with `data:` and then an empty line; a
# line that begins with a colon is a comment; `data: [DONE]` says that all was said. `pieces` are the bytes as the
# network gives them, torn anywhere. Return the texts of the events without `[DONE]`; what does not end doesn't count.


# %% key="ex3" exercise="09.3" tags=["nbval-check-output"]
def read_events(pieces):
    raise NotImplementedError


check("09.3", read_events)


# %% key="ex3-solution" solution="09.3" tags=["nbval-check-output"]
def read_events(pieces):
    told = []
    for block in b"".join(pieces).split(b"\n\n")[:-1]:
        for line in block.decode().split("\n"):
            if line.startswith("data:"):
                told.append(line.removeprefix("data:").removeprefix(" "))
    return told[: told.index("[DONE]")] if "[DONE]" in told else told


check("09.3", read_events)

# %% [markdown] key="exercise4" lang="zh" partner="890f3e17"
# **09.4** 一次请求失败了：`status` 是状态码，`retry_after` 是服务器要你等的秒数（或 `None`），`tokens_seen` 是已经交给读者的 token，
# `attempt` 是此前重试过几次（从 0 起），`max_retries` 是上限。返回该等几秒再试；不该再试就返回 `None`。
# 等待从半秒起，每次翻倍，但不早于 `retry_after`（这里不加随机）。

# %% [markdown] key="exercise4" lang="en" partner="9ad8d7f2"
# **09.4** A request has failed: `status` is its status, `retry_after` the seconds that the server asks for (or
# `None`), `tokens_seen` the tokens that the reader already has, `attempt` how often it was tried again before (from
# 0), `max_retries` the limit. Return the seconds to wait before the next attempt, or `None` if there must be none.
# Waiting begins with half a second and doubles each time, but is never shorter than `retry_after` (chance is left
# out here).


# %% key="ex4" exercise="09.4" tags=["nbval-check-output"]
def retry_wait(status, retry_after, tokens_seen, attempt, max_retries):
    raise NotImplementedError


check("09.4", retry_wait)


# %% key="ex4-solution" solution="09.4" tags=["nbval-check-output"]
def retry_wait(status, retry_after, tokens_seen, attempt, max_retries):
    may_pass = status in (408, 429) or status >= 500
    if not may_pass or tokens_seen or attempt >= max_retries:
        return None
    return max(retry_after or 0.0, 0.5 * 2**attempt)


check("09.4", retry_wait)

# %% [markdown] key="summary" lang="zh" partner="98d63c1a"
# ## 星期一怎么做
#
# 1. 用日志里的长度算 $E[\max]$ 与平均之比：那是换成连续批处理就能拿到的，跟哪家引擎无关。
# 2. 用三个并发数量出候选引擎的 $a$、$b$、$d$，在**你的**模型和机器上；倍数从这三个数和长度里算，别从博客里抄。
# 3. 引擎、模型、设置写进 `serving.yaml`，代码里不留引擎的名字；上线前跑一遍 `servinglib config show`。
# 4. 想好退路再上线：回滚是 `engine: transformers` 这一个词；`fallback` 只在你愿意让延迟变样的时候写，并给那条警告配上告警。
# 5. 租 API 时，客户端照样要数 token、听 `Retry-After`、给过 token 不重试；TTFT 要自己量，从打算发送的那一刻起。

# %% [markdown] key="summary" lang="en" partner="0b7d3dc1"
# ## What to do on Monday
#
# 1. From the lengths in your logs, compute $E[\max]$ over the mean: that is what continuous batching gives, whoever
#    makes the engine.
# 2. Measure $a$, $b$ and $d$ of the candidates at three numbers of requests at once, on **your** model and machine;
#    work the factor out from these and the lengths instead of copying one from a blog.
# 3. Put engine, model and settings into `serving.yaml` and leave no engine's name in the code; before you go live,
#    run `servinglib config show`.
# 4. Know the way back first: rolling back is one word, `engine: transformers`; write `fallback` only where you
#    accept other latencies, and raise an alert on its warning.
# 5. If you rent an API, your client still counts tokens, heeds `Retry-After`, and never tries again once a token
#    was delivered; measure TTFT yourself, from the moment you meant to send.

# %% [markdown] key="references" lang="zh" partner="5f14cf93"
# ## 参考文献
#
# - W. Kwon 等, *Efficient Memory Management for Large Language Model Serving with PagedAttention*, SOSP 2023,
#   arXiv:2309.06180。论文里的 2 到 4 倍和它的条件。
# - vLLM 团队, *vLLM: Easy, Fast, and Cheap LLM Serving with PagedAttention*, 2023, blog.vllm.ai。24 倍的出处。
# - G.-I. Yu 等, *Orca: A Distributed Serving System for Transformer-Based Generative Models*, OSDI 2022。连续批处理的起点。
# - L. Zheng 等, *SGLang: Efficient Execution of Structured Language Model Programs*, 2023, arXiv:2312.07104。
# - P. Lewis 等, *Retrieval-Augmented Generation for Knowledge-Intensive NLP Tasks*, NeurIPS 2020, arXiv:2005.11401。
# - WHATWG, *HTML Living Standard*, 9.2 Server-sent events。
# - M. Brooker, *Exponential Backoff And Jitter*, AWS Architecture Blog, 2015。

# %% [markdown] key="references" lang="en" partner="382fc751"
# ## References
#
# - W. Kwon et al., *Efficient Memory Management for Large Language Model Serving with PagedAttention*, SOSP 2023,
#   arXiv:2309.06180. The paper's 2 to 4 times, and its conditions.
# - The vLLM team, *vLLM: Easy, Fast, and Cheap LLM Serving with PagedAttention*, 2023, blog.vllm.ai. Where the 24 comes
#   from.
# - G.-I. Yu et al., *Orca: A Distributed Serving System for Transformer-Based Generative Models*, OSDI 2022. Where
#   continuous batching begins.
# - L. Zheng et al., *SGLang: Efficient Execution of Structured Language Model Programs*, 2023, arXiv:2312.07104.
# - P. Lewis et al., *Retrieval-Augmented Generation for Knowledge-Intensive NLP Tasks*, NeurIPS 2020,
#   arXiv:2005.11401.
# - WHATWG, *HTML Living Standard*, 9.2 Server-sent events.
# - M. Brooker, *Exponential Backoff And Jitter*, AWS Architecture Blog, 2015.
