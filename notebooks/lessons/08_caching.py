# %% [markdown] key="title" lang="zh" partner="bd199f97"
# # 08 · 缓存
#
# 一个客服机器人：每个提示都以同样的 600 个 token 开头（规则和示例），后面跟 40 个 token 的问题，
# 回答 16 个 token。日志里 30% 的问题是一字不差的重复。服务器快扛不住了。同事说：「上 Redis，把答案存起来。」
# 另一位说：「把引擎的前缀缓存打开就行。」运维问：「那 KV 缓存要留多少空着？」
#
# 学完这一课，你能做三件事：
#
# - 说出结果缓存、前缀缓存、KV 缓存各存什么、按什么查、省的是哪一段时间；
# - 由流行度和容量算出命中率，由命中长度算出 TTFT，再换算成服务器能扛的请求数；
# - 一眼看出什么样的提示模板、采样设置和并发会把命中率打成零。

# %% [markdown] key="title" lang="en" partner="efce126c"
# # 08 · Caching
#
# A support bot: every prompt begins with the same 600 tokens of rules and examples, then comes a question
# of 40 tokens, and the answer has 16. In the logs, 30% of the questions repeat an earlier one word for
# word. The server is near its limit. One colleague says: "Put Redis in front and keep the answers." Another
# says: "Just switch on the engine's prefix cache." And operations ask: "So how much KV cache must stay idle?"
#
# After this lesson you can
#
# - say what a result cache, a prefix cache and the KV cache hold, what they are looked up by, and which part
#   of the time each saves;
# - derive the hit rate from popularity and size, TTFT from the length of a hit, and from both how many
#   requests a server can carry;
# - see at a glance which prompt templates, sampling settings and crowds push the hit rate to zero.

# %% key="imports"
import numpy as np

from servinglib.cache.prefix import block_keys
from servinglib.cache.result_cache import ResultCache, Transcript, cache_key
from servinglib.course import check, hint
from servinglib.course.exercises.lesson08 import judge
from servinglib.engines.continuous.engine import ContinuousEngine
from servinglib.experiments import cache_traffic, caching
from servinglib.experiments.remembering_engine import RememberingEngine
from servinglib.experiments.serving_run import fit_step_time, serve
from servinglib.plots import MEASURED, SIMULATED, THEORY, figure, label
from servinglib.request import SamplingParams
from servinglib.statistics import streams
from servinglib.workload import RequestSpec, token_prompts

# %% [markdown] key="predict" lang="zh" partner="066437e7"
# ## 先押注
#
# 单独打开结果缓存，服务器每秒能处理的请求变成原来的几倍？单独打开前缀缓存呢？两个都开？把三个数改成你的答案。

# %% [markdown] key="predict" lang="en" partner="dbdfc9ef"
# ## Place your bet
#
# By what factor does the result cache alone raise the requests per second that the server can carry? The
# prefix cache alone? And both together? Put your three numbers into the cell.

# %% key="guess"
guesses = {"result cache": 1.4, "prefix cache": 1.2, "both": 1.6}

# %% [markdown] key="three" lang="zh" partner="c417f803"
# ## 三个缓存，三种问法
#
# | | 结果缓存 | 前缀缓存 | KV 缓存本身 |
# | --- | --- | --- | --- |
# | 问的是 | 这个请求以前有人问过吗？ | 这个开头以前有人算过吗？ | 这个 token 我自己刚才算过吗？ |
# | 键 | 整个提示加采样参数 | 一串块键，块块相扣 | 位置 |
# | 存的是 | 文字 | 键和值的块 | 键和值的块 |
# | 命中省下 | 全部 | 开头的预填充 | 每一步重算前文 |
# | 谁命中 | 少数请求 | 几乎所有请求 | 每个请求的每个 token |
#
# 第三个不是可选项：没有它，生成第 $n$ 个 token 要把前面 $n-1$ 个重算一遍（第 05 课）。前缀缓存是顺手的：
# 请求走了，块先不擦，下一个开头相同的请求直接接着用。所以它不另占内存，占的是**闲着的** KV 块。
#
# 内存的账差得很远。下面按 Qwen3-0.6B 的形状和 H200 公布的规格（稠密 bf16 989 TFLOPS）算，是**算术**，不是测量。

# %% [markdown] key="three" lang="en" partner="8662022b"
# ## Three caches, three questions
#
# | | result cache | prefix cache | the KV cache itself |
# | --- | --- | --- | --- |
# | it asks | did anybody ask this before? | did anybody compute this beginning? | did I compute this token just now? |
# | key | whole prompt and sampling parameters | a chain of block keys | position |
# | it holds | text | blocks of keys and values | blocks of keys and values |
# | a hit saves | everything | prefill of the beginning | computing all again at each step |
# | who hits | a few requests | nearly all requests | every token of every request |
#
# The third is no option: without it, token $n$ would take computing the $n-1$ before it again (lesson 05).
# The prefix cache comes almost for free: when a request leaves, its blocks aren't wiped, and the next one with
# the same beginning carries on from there. So it takes no memory but the KV blocks that are **idle**.
#
# In memory they are worlds apart. The cell takes the shape of Qwen3-0.6B and the published data of an H200
# (dense bf16 989 TFLOPS); this is **arithmetic** and not a measurement.

# %% key="three-code"
kv_bytes = 28 * 2 * 8 * 128 * 2  # layers, keys and values, heads, head_dim, bf16
beginning = 600 * kv_bytes
answer = Transcript(tuple(range(1000, 1064)), ("word ",) * 64, "stop")  # 64 tokens
print(f"600 tokens of keys and values: {beginning / 2**20:.1f} MiB")
print(f"an answer of 64 tokens, as text and ids: {answer.size / 1024:.1f} KiB")
print(f"one beginning takes the room of {beginning / answer.size:,.0f} answers")
print(f"computing it again takes an H200 {2 * 596e6 * 600 / 989e12 * 1e3:.2f} ms at least,")
print(f"fetching it from the host over PCIe at 64 GB/s {beginning / 64e9 * 1e3:.2f} ms")

# %% [markdown] key="three-reading" lang="zh" partner="4188d6df"
# 一个开头抵得上近万条答案，但这一个开头**人人**用得着。最后两行是个提醒：小模型的前缀放到主机内存里，按峰值算，取回来比重算还慢；
# 模型越大，重算越贵，账才会反过来。

# %% [markdown] key="three-reading" lang="en" partner="59d81543"
# One beginning takes the room of nearly ten thousand answers, but **everybody** can use it. The last two lines
# are a warning: at peak rates and for a small model, fetching a prefix from host memory is slower than
# computing it again; a larger model makes computing dearer, until the balance tips.

# %% [markdown] key="tree" lang="zh" partner="52dd9d38"
# ## 前缀缓存是一棵树
#
# 键和值取决于它**之前的全部** token，所以一块能不能共享，要看整条路是否相同。块键就是这么链起来的：
# 每一块的键是「前一块的键，加上自己的 token」的摘要。键相同，就是从第一个 token 起都相同。
# 一个从键到块的字典，于是就是一棵树，一根指针也没有；沿着键一路查到查不着为止，就是最长前缀匹配。
#
# 下面五个提示，一个词当一个 token，四个一块（引擎里是 16 个）。括号里是经过这一块的提示个数。

# %% [markdown] key="tree" lang="en" partner="36d660d6"
# ## The prefix cache is a tree
#
# Keys and values depend on **all** tokens before them, so a block can be shared only where the whole way to it
# is the same. That is how block keys are chained: the key of a block is a digest of the key before it and its
# own tokens. Equal keys mean equal tokens from the very first on. So a dictionary from keys to blocks is a
# tree without a single pointer, and following the keys until one is missing is the longest-prefix match.
#
# Here are five prompts: each word is a token, with four to a block (16 in the engine). In parentheses is how
# many prompts go through a block.

# %% key="tree-code"
texts = [
    "You are a helpful assistant of Lumen Shop. Where is my parcel and when does it come?",
    "You are a helpful assistant of Lumen Shop. Where is my parcel I ordered last week?",
    "You are a helpful assistant of Lumen Shop. Do you sell tea in larger bags, too?",
    "You are a helpful translator into German. Translate: Good morning, dear customer!",
    "(9:01) You are a helpful assistant of Lumen Shop. Where is my parcel and when does",
]
tree = cache_traffic.prefix_tree(texts, block_size=4)
fig, ax = figure(
    "Five prompts, one tree of blocks", "block of the prompt", "", xticks=range(4), size=(8, 4.2)
)
for node in tree:
    words, edge = node.text.split(), "#0072B2" if node.prompts > 1 else "#999999"
    shown = f"{' '.join(words[:2])}\n{' '.join(words[2:])}\n({node.prompts})"
    box = {"boxstyle": "round", "facecolor": "white", "edgecolor": edge}
    ax.annotate(shown, (node.depth, -node.row), ha="center", va="center", fontsize=8, bbox=box)
    if node.parent:
        ax.plot([node.parent.depth, node.depth], [-node.parent.row, -node.row], color="#999999", zorder=0)
ax.set(xlim=(-0.5, 3.6), ylim=(-4.6, 0.6), yticks=[])
ax.grid(False)
print(f"{sum(node.prompts for node in tree)} full blocks in the prompts, {len(tree)} to compute and keep")

# %% [markdown] key="tree-reading" lang="zh" partner="c7fbea70"
# 最下面那条：同样的话，前面多了一个时刻，整条路都是新的。这个坑后面还会踩到。
#
# 内存不够时忘掉谁？没人在用的块里闲得最久的。序列放手时从**末尾**往前放，所以叶子总比父亲先被忘掉：
# 没有结尾的开头还有用，没有开头的结尾永远查不到。

# %% [markdown] key="tree-reading" lang="en" partner="8ad98319"
# See the lowest row: the same words behind a time of day, and the whole way is new. This trap will come back.
#
# Who is forgotten when memory runs out? Of the blocks that nobody holds, the one idle longest. A sequence lets
# go of its **end** first, so a leaf is forgotten before its parent: a beginning without its end is still of
# use, an end without its beginning can't be found.

# %% [markdown] key="rest" lang="zh" partner="e411e722"
# ## 命中之后还剩多少要算
#
# 同一个提示问两遍，第二遍能找到多少？两处零头。**块**：只有整块才共享，零头最多 15 个 token 要重算。
# **最后一个 token**：哪怕全部命中也得算，因为下一个 token 来自最后一个位置的输出，而键和值里没有输出。
# 先猜 512 那一行。下面左边是真引擎，右边是仿真，两边用同一个 `BlockPool` 记账。

# %% [markdown] key="rest" lang="en" partner="53a6ecb0"
# ## What is left to compute after a hit
#
# Ask the same prompt twice: how much does the second find? There are two remainders. **Blocks**: only whole
# ones are shared, so up to 15 tokens are computed again. **The last token** is computed even if all is known,
# because the next token comes from the output at the last position, and keys and values hold no outputs.
# Guess the row of 512 first. Left is the real engine, right the simulator; one `BlockPool` keeps both books.

# %% key="rest-code" tags=["nbval-check-output"]
engine = ContinuousEngine.load("course-tiny", kv_cache_memory="128MiB", max_num_seqs=16)
print("tokens in the prompt   found by the engine   by the simulator   to compute")
for length in (511, 512, 513, 527, 528, 529):
    [prompt] = token_prompts([length], engine.vocabulary, seed=length)
    found = caching.engine_hits(engine, [prompt, prompt])[1]
    simulated = caching.simulator_hits([prompt, prompt])[1]
    print(f"{length:20d}{found:22d}{simulated:19d}{length - found:13d}")

# %% [markdown] key="turns" lang="zh" partner="9443b5a1"
# 对话是前缀缓存的主场：第二轮的提示就是第一轮的提示、回答，再加新问题，连**回答**的块也能命中。
# 下面一段四轮的对话，规则 200 个 token，每轮问 24 个、答 40 个。

# %% [markdown] key="turns" lang="en" partner="096745d0"
# Conversations are where a prefix cache is at home: the second prompt is the first, its answer and a new
# question, so the blocks of the **answer** are found as well. Here are four turns with 200 tokens of rules, 24
# to a question and 40 to an answer.

# %% key="turns-code" tags=["nbval-check-output"]
[history, *questions] = token_prompts([200, 24, 24, 24, 24], engine.vocabulary, seed=1)
prompts, answers, found = [], [], []
for question in questions:
    prompts.append(history + question)
    before = engine.statistics.prefix_cache_hits
    [completion] = engine.generate([prompts[-1]], max_tokens=40, ignore_eos=True)
    found.append(engine.statistics.prefix_cache_hits - before)
    answers.append(completion.token_ids)
    history = [*prompts[-1], *completion.token_ids]
print("turn   prompt   found by the engine   by the simulator   to compute")
for turn, simulated in enumerate(caching.simulator_hits(prompts, answers)):
    length = len(prompts[turn])
    print(f"{turn + 1:4d}{length:9d}{found[turn]:22d}{simulated:19d}{length - found[turn]:13d}")

# %% [markdown] key="turns-reading" lang="zh" partner="8e789caf"
# 提示越来越长，要算的却不再增长：每轮只剩新问题和几个零头。有个前提：历史要按**原来的 token** 传回来。
# 把回答变成文字再重新切词，切法可能不同，命中就断在那里。

# %% [markdown] key="turns-reading" lang="en" partner="d2a5438f"
# The prompt grows and the work does not: each turn leaves the new question and a few odd tokens. That takes a
# history that comes back as **the same tokens**. An answer that was turned into text and tokenized again may
# be cut differently, and there the hit ends.

# %% [markdown] key="law" lang="zh" partner="ef2e64a8"
# ## 命中多长，TTFT 就短多少
#
# 一步的时间是 $\tau=a+bn+cK+dP$（第 05、06 课）。空闲的服务器上，长 $p$ 的提示命中 $h$ 个 token：
#
# $$\text{TTFT}=a+b+c\,p+d\,(p-h)$$
#
# 每命中一个 token 省 $d$ 秒，一条直线。注意 $c\,p$ 没有打折：命中的键和值还是要**读**的。
# 用 `bench-30m` 来量。标定用另外一批提示，四个数由它们的步拟合；仿真用同样的四个数，加上引擎的记账规则。

# %% [markdown] key="law" lang="en" partner="8c8f4acd"
# ## TTFT falls with the length of the hit
#
# A step takes $\tau=a+bn+cK+dP$ (lessons 05 and 06). On an idle server, a prompt of $p$ tokens that finds $h$ of
# them has
#
# $$\text{TTFT}=a+b+c\,p+d\,(p-h)$$
#
# Each token found saves $d$ seconds: a straight line. There is no discount on $c\,p$, since the keys and values
# that were found must still be **read**. The measurement is on `bench-30m`. Other prompts serve to calibrate:
# the four numbers are fitted to their steps. The simulation adds the engine's books to the same four.

# %% key="law-calibrate"
heavy = ContinuousEngine.load("bench-30m", kv_cache_memory="256MiB", max_num_seqs=4)
heavy.warm_up()
start = heavy.now()
for seed, length in enumerate((16, 48, 96, 160, 320, 480, 640) * 2):
    heavy.generate(token_prompts([length], heavy.vocabulary, seed=seed), max_tokens=4, ignore_eos=True)
law = fit_step_time([step for step in heavy.steps if step.start > start])
print(f"a + b = {(law.a + law.b) * 1e3:.1f} ms, d = {law.d * 1e3:.3f} ms per prompt token")

# %% key="law-code"
common = (0, 100, 200, 300, 400, 500, 600, 640)  # tokens in common with an earlier prompt, of 640
measured, simulated = [], []
for tokens in common:
    stem, *others = token_prompts([640] * 5, heavy.vocabulary, seed=100 + tokens)
    prompts = [stem[:tokens] + other[tokens:] for other in others]  # the first leaves the stem behind
    done = [heavy.generate([prompt], max_tokens=1)[0].timeline for prompt in prompts]
    measured.append([(t.first_token - t.scheduled) / 1e6 for t in done[1:]])
    far_apart = [RequestSpec(100.0 * i, 640, 1) for i in range(len(prompts))]
    run = caching.simulate_results(far_apart, range(len(prompts)), law, prompts)
    simulated.append(run.ttft[-1] * 1e3)
heavy.shutdown()

fig, ax = figure(
    "Every token found saves the same time", "tokens in common with an earlier prompt, of 640", "TTFT (ms)"
)
theory = [law(1, 640, 640 - tokens) * 1e3 for tokens in common]
ax.plot(common, theory, label="theory", **THEORY)
ax.plot(common, simulated, linestyle="", label="simulated: whole blocks only", **SIMULATED)
ax.plot(
    np.repeat(common, 3), np.ravel(measured), linestyle="", label="measured", **MEASURED | {"markersize": 3.5}
)
ax.set_ylim(0)
ax.legend()
ratios = [theory[0] / theory[6], simulated[0] / simulated[6], np.median(measured[0]) / np.median(measured[6])]
print("600 of 640 found, TTFT shorter by theory x{:.1f}, simulated x{:.1f}, measured x{:.1f}".format(*ratios))

# %% [markdown] key="law-reading" lang="zh" partner="5c9563c4"
# 圆圈比直线略高，那是块的零头。再看最右端：全部命中也剩一步的固定成本，所以提示短的时候前缀缓存没什么可省的。
# 实测点若在右端高出圆圈，错在一个 $a$ 要管两种步：CPU 引擎的解码步走便宜的路，16 个 token 的预填充就走不了。

# %% [markdown] key="law-reading" lang="en" partner="19e5e657"
# The circles lie a little above the line: that is what whole blocks cost. And see the right end: with
# everything found there is still the fixed cost of a step, so with short prompts a prefix cache has little to
# save. Measured points above the circles there mean that one $a$ can't serve two kinds of step: the CPU
# engine has a cheap route for decode steps, closed to a prefill of 16 tokens.

# %% [markdown] key="che" lang="zh" partner="3020a815"
# ## 命中率：一个数说清 LRU
#
# 命中多长由提示决定，**多久命中一次**由流行度和容量决定。热门程度常近似 Zipf 分布：第 $i$ 名的请求占比
# $p_i\propto i^{-s}$。缓存装得下 $C$ 条，满了就丢最久没人要的（LRU）。命中率多少？
#
# Che、Tung 和 Wang 的想法：把缓存想成一个书架，刚碰过的放最左。一本没人碰的书被别的书一路往右推，推到头就掉下去。
# 推多久，取决于书架的长度，几乎不取决于是哪本书。这个时间 $T$（以请求数计）叫**寿命**：$T$ 个请求里被碰过的书，正好摆满书架。
#
# $$\sum_i\left(1-e^{-p_iT}\right)=C,\qquad \text{命中率}=\sum_i p_i\left(1-e^{-p_iT}\right)$$
#
# 先猜：1,000 种问题，$s=1$，只存 100 条（一成），命中多少？下面圆圈由真的 `ResultCache` 一问一答得出。

# %% [markdown] key="che" lang="en" partner="c16ca923"
# ## Hit rate: one number tells LRU
#
# Prompts decide how long a hit is; popularity and size decide **how often there is one**. Popularity is often
# close to Zipf's law: number $i$ gets a share $p_i\propto i^{-s}$ of the requests. The cache has room for $C$
# answers, and when it is full, the one not wanted for longest goes (LRU). What is the hit rate?
#
# The idea of Che, Tung and Wang: think of a shelf where whatever was touched last stands at the left. A book
# that nobody touches is pushed to the right until it falls off. How long that takes depends on the shelf and
# hardly on the book. This time $T$, in requests, is the **lifetime**: the books touched within $T$ requests
# just fill the shelf.
#
# $$\sum_i\left(1-e^{-p_iT}\right)=C,\qquad \text{hit rate}=\sum_i p_i\left(1-e^{-p_iT}\right)$$
#
# Guess first: of 1,000 different questions with $s=1$, only 100 answers are kept, one in ten. How many hits?
# The circles come from the real `ResultCache`, question by question.

# %% key="che-code"
fine, sizes = np.geomspace(5, 600, 40), (10, 30, 100, 300)
fig, ax = figure(
    "A small cache finds the popular ones", "answers kept, of 1,000", "hit rate", xscale="log", xticks=sizes
)
for exponent in (0.6, 0.8, 1.0):
    popularity = cache_traffic.zipf(1000, exponent)
    asked = streams(0, "questions")["questions"].choice(1000, 20_000, p=popularity)
    found = [caching.result_cache_hits(asked, size)[2000:].mean() for size in sizes]
    [line] = ax.plot(fine, [caching.lru_hit_rate(popularity, size) for size in fine], **THEORY)
    ax.plot(sizes, found, linestyle="", **SIMULATED)
    label(ax, line, f"s = {exponent}")
    theory = caching.lru_hit_rate(popularity, 100)
    print(f"s = {exponent}, 100 kept: theory {theory:.3f}, the ResultCache {found[2]:.3f}")
_ = ax.set(ylim=(0, 1), xlim=(5, 900))

# %% [markdown] key="memory" lang="zh" partner="5e3284ef"
# ## KV 缓存要留多少闲着
#
# 现在把同一条公式用在块上。40 个租户，各有 96 个 token（6 块）的规则，流行度 $s=0.9$；每个问题 32 个 token（2 块），
# 只问一次。只问一次的块同样占着书架：问完就没人要了，却要躺满整个寿命才掉下去。所以方程多一项：
#
# $$6\sum_i\left(1-e^{-p_iT}\right)+2\,T=C$$
#
# 三列：理论；仿真（同一套 `BlockPool`，3,000 个请求）；真引擎，三种 KV 内存，各跑 200 个请求。
# 最后一列是这 200 个请求的仿真，它和引擎该差多少？

# %% [markdown] key="memory" lang="en" partner="9ce3ca02"
# ## How much KV cache to leave idle
#
# Now the same formula for blocks. There are 40 tenants with 96 tokens (6 blocks) of rules each, popular by
# $s=0.9$, and every question has 32 tokens (2 blocks) and is asked only once. Blocks that are asked for once
# stand on the shelf all the same, for a whole lifetime, though nobody will want them. So the equation has one
# more term:
#
# $$6\sum_i\left(1-e^{-p_iT}\right)+2\,T=C$$
#
# Three columns: theory; simulation with the same `BlockPool` and 3,000 requests; and the real engine with three
# sizes of KV memory and 200 requests. The last column simulates just these 200. By how much should it differ
# from the engine?

# %% key="memory-code" tags=["nbval-check-output"]
popularity = cache_traffic.zipf(40, 0.9)
traffic = {"shared": 96, "question": 32, "vocabulary": engine.vocabulary}
few = cache_traffic.tenant_prompts(popularity, 200, seed=3, **traffic)
many = cache_traffic.tenant_prompts(popularity, 3000, seed=4, **traffic)
rows = []
print("blocks  lifetime   theory  simulated | engine  simulated, the same 200")
for blocks in (64, 128, 256):
    memory = blocks * 16 * engine.memory.bytes_per_token
    with ContinuousEngine.load("course-tiny", kv_cache_memory=memory, max_num_seqs=4) as small:
        assert small.memory.num_blocks == blocks
        real = caching.engine_hits(small, few) / 96  # share of the rules that was found
    same = caching.simulator_hits(few, kv_blocks=blocks) / 96
    long = caching.simulator_hits(many, kv_blocks=blocks)[400:] / 96
    life = caching.lifetime(popularity, blocks, size=6, once=2)
    theory = caching.lru_hit_rate(popularity, blocks, size=6, once=2)
    rows.append((blocks, long.mean(), real.mean()))
    print(f"{blocks:6d}{life:10.1f}{theory:9.3f}{long.mean():11.3f} |{real.mean():7.3f}{same.mean():11.3f}")

# %% key="memory-figure"
fine = np.linspace(20, 400, 60)
fig, ax = figure("Idle blocks buy hits, ever fewer", "blocks of KV cache that may lie idle", "hit rate")
blocks, long, real = np.transpose(rows)
with_once, without = ([caching.lru_hit_rate(popularity, size, 6, once) for size in fine] for once in (2, 0))
[line] = ax.plot(fine, with_once, **THEORY)
label(ax, line, "theory")
[line] = ax.plot(fine, without, color="#999999", marker="", linewidth=1.2)
label(ax, line, "if questions\nleft nothing")
ax.plot(blocks, long, linestyle="", label="simulated, 3,000 requests", **SIMULATED)
ax.plot(blocks, real, linestyle="", label="engine, 200 requests", **MEASURED)
ax.set(ylim=(0, 1.05), xlim=(0, 500))
_ = ax.legend(loc="lower right")

# %% [markdown] key="memory-reading" lang="zh" partner="85590b5e"
# 引擎和仿真一个 token 不差：决定谁被忘掉的是同一段代码。引擎与理论的差，一是 200 个请求的抽样误差，二是开头的缓存还是空的，理论讲的是稳态。
#
# 灰线是问题不占地方时的情形：240 块（$40\times 6$）就装下了全部规则。实际上只问一次的块不停地往里挤，同样的命中率要贵得多。
#
# 怎么用：寿命 $T$ 除以到达率就是秒。一个租户两次请求的间隔若比它短，多半命中；若长得多，再加点内存也白搭。
# 算 $C$ 时先扣掉正在跑的请求占的块（`kv_cache_usage`）：它们不闲着。

# %% [markdown] key="memory-reading" lang="en" partner="db46d643"
# Engine and simulation agree to the token, because the same code decides who is forgotten. The engine is off
# the theory by the sampling error of 200 requests, and because its cache starts empty: theory means the
# steady state.
#
# The grey line is for questions that take no room: 240 blocks ($40\times 6$) would hold all the rules. In fact
# blocks that are asked for once keep pushing in, and the same hit rate is much dearer.
#
# How to use it: the lifetime $T$ over the arrival rate is in seconds. A tenant whose requests are closer
# together than that mostly hits; where the gaps are much longer, a little more memory won't help. From $C$,
# subtract first the blocks that running requests hold (`kv_cache_usage`): those are not idle.

# %% [markdown] key="decide" lang="zh" partner="c719f8ff"
# ## 回到客服机器人：四种配置
#
# 现在是开头那道题。提示 640 个 token，开头的 592 个（37 块）能命中，回答 16 个；重复率 30%。
# 一台一直有 $B=16$ 个请求在跑的服务器，每个请求走 16 步，每步的 $a$ 由 $B$ 个请求分摊，再加自己的活 $w$。所以上限是
#
# $$\frac{1}{1-r}\cdot\frac{1}{16a/B+w-592\,d}$$
#
# $r$ 是结果缓存答掉的比例，没有它就是 0；没有前缀缓存就去掉 $592\,d$。**两种缓存相乘，不是相加**：结果缓存减少请求数，
# 前缀缓存减少每个请求的活。
#
# 三列用同一批请求：先来一个，随后 47 个同时涌进来，看多久答完。`RememberingEngine` 是套在引擎外面的结果缓存。
# 每种配置都用全新的引擎，先用别的提示标定。

# %% [markdown] key="decide" lang="en" partner="9645de70"
# ## Back to the support bot: four configurations
#
# Now the question of the beginning. Prompts have 640 tokens, of which the first 592 (37 blocks) can be found,
# answers have 16, and 30% repeat. In a server that always has $B=16$ requests in work, each takes 16 steps, in
# which $B$ requests share $a$, and adds its own work $w$. So the limit is
#
# $$\frac{1}{1-r}\cdot\frac{1}{16a/B+w-592\,d}$$
#
# where $r$ is the share that a result cache answers, 0 without one; without a prefix cache, leave out $592\,d$.
# **The two multiply, they don't add**: a result cache makes requests fewer, a prefix cache makes each one
# smaller.
#
# The three columns have the same requests: one comes alone, then 47 rush in at once, and we see how soon all
# are answered. `RememberingEngine` is the result cache around the engine. Each configuration gets a new
# engine, calibrated with other prompts.


# %% key="decide-run"
configurations = {  # prefix cache, result cache
    "none": (False, False),
    "result cache": (False, True),
    "prefix cache": (True, False),
    "both": (True, True),
}
bot = {"shared": 600, "question": 40, "answer": 16, "vocabulary": engine.vocabulary}
drill = cache_traffic.support_desk(1.0, 24, repeats=0.0, seed=7, **bot).at_once(0.1)
mixed = token_prompts([640] * 4, engine.vocabulary, seed=8) + drill.prompts[4:]  # long prefills and short


async def run_with(name, desk):
    prefix, result = configurations[name]
    options = {"kv_cache_memory": "128MiB", "max_num_seqs": 16, "prefix_caching": prefix}
    with ContinuousEngine.load("course-tiny", **options) as served:
        served.warm_up()
        law = fit_step_time((await serve(served, drill.workload, prompts=mixed)).steps)
        front = RememberingEngine(served, ResultCache(2**26)) if result else served
        run = await serve(front, desk.workload, prompts=desk.prompts)
    asked = desk.questions if result else range(len(desk.prompts))
    known = desk.prompts if prefix else None
    return law, caching.simulate_results(desk.workload, asked, law, known, max_num_seqs=16), run


# %% key="decide-code"
def theory(name, law):
    prefix, result = configurations[name]
    return caching.saturated_rate(law, 640, 16, 16, cached=592 * prefix, repeats=desk.repeats * result)


desk = cache_traffic.support_desk(1.0, 48, repeats=0.3, seed=2, **bot)
print(f"of these 48 requests, {desk.repeats:.0%} repeat an earlier one")
limits, laws = {}, {}
print("requests/s        theory  simulated  measured")
for name in configurations:
    laws[name], simulated, run = await run_with(name, desk.at_once(0.3))
    rates = [47 / outcome.latencies[1:].max() for outcome in (simulated, run)]
    limits[name] = [theory(name, laws[name]), *rates]
    print("{:15s}{:9.1f}{:11.1f}{:10.1f}".format(name, *limits[name]))

# %% key="decide-figure"
fig, ax = figure("What each cache lets the server carry", "", "requests/s")
dash = THEORY | {"marker": "_", "markersize": 28}
styles = {"theory": dash, "simulated": SIMULATED, "measured": MEASURED}
for (column, style), values in zip(styles.items(), zip(*limits.values(), strict=True), strict=True):
    ax.plot(range(4), values, label=column, **style | {"linestyle": ""})
ax.set_xticks(range(4), limits)
ax.set(ylim=0, xlim=(-0.5, 3.5))
_ = ax.legend()

# %% key="settle"
law = laws["prefix cache"]  # one for all, so that a change of the machine's speed stays out of the ratio
for name, guess in guesses.items():
    exact, found = theory(name, law) / theory("none", law), limits[name][2] / limits["none"][2]
    print(f"{name:13s} you said x{guess:.1f}; theory x{exact:.1f}, measured x{found:.1f}")

# %% [markdown] key="decide-reading" lang="zh" partner="ab960f85"
# 公式里，结果缓存的倍数只由重复率决定，与机器无关：$1/(1-r)$。前缀缓存的倍数要看预填充在总活里的份额，提示长、回答短就大。
# 意外在这里：「只有 30% 的问题重复」，说的是整个问题；而**开头**的重复率是 100%。
#
# 实测的前缀缓存若低于理论，多半是这个原因：一小段预填充接在很长的命中后面，要先把那段键和值逐条读出来，
# 每个 token 比整段预填充贵。一个 $d$ 说不清两种价钱。
#
# 延迟呢？给四种配置同样的流量：无缓存时实测上限的 0.7 倍，泊松到达，同一串顾客。混合的步没有闭式的排队公式，
# 所以只有仿真和实测两列。

# %% [markdown] key="decide-reading" lang="en" partner="28d6f14e"
# By the formula, the result cache's factor is a matter of the repeats alone, whatever the machine: $1/(1-r)$.
# The prefix cache's depends on the share of prefill in all the work: much with long prompts and short
# answers. And here is the surprise: "only 30% of the questions repeat" speaks of whole questions; of the
# **beginnings**, 100% repeat.
#
# If the measured prefix cache stays below theory, this is the likely reason: a short prefill behind a long hit
# must first read all those keys and values, one request after another, so each of its tokens costs more than in
# a whole prefill. One $d$ can't name two prices.
#
# And latency? All four get the same Poisson traffic, 0.7 of the measured limit without caches. Mixed steps have
# no closed formula for the queue, so there are two columns, simulated and measured.

# %% key="latency-code"
rate = 0.7 * limits["none"][2]
desk = cache_traffic.support_desk(rate, 48, repeats=0.3, seed=2, **bot)
print(f"{rate:.1f} requests/s    mean TTFT (ms)         P95 TTFT (ms)")
print("                 simulated  measured   simulated  measured")
for name in configurations:
    law, simulated, run = await run_with(name, desk)
    ttft = np.array([simulated.ttft, run.ttft]) * 1e3
    means, high = ttft.mean(axis=1), np.quantile(ttft, 0.95, axis=1)
    print(f"{name:15s}{means[0]:11.1f}{means[1]:10.1f}{high[0]:12.1f}{high[1]:10.1f}")

# %% [markdown] key="latency-reading" lang="zh" partner="414fdff8"
# 先看仿真那两列的规律：前缀缓存把**每个**请求都变小，均值和 P95 一起降。结果缓存的命中是 0 毫秒，均值跟着降，
# 可七成请求照旧要算，P95 落在它们身上，只因负载轻了才好一些。所以命中率到不了 95%，P95 就不会自己变成命中的样子：
# 均值好看，尾延迟照旧。实测里还有线程和事件循环的时间，那是仿真没有的。

# %% [markdown] key="latency-reading" lang="en" partner="97d5d6dd"
# Look at the simulated columns first. The prefix cache makes **every** request smaller, and mean and P95 fall
# together. A hit in the result cache takes 0 ms and the mean falls with it, but seven in ten are computed as
# before, P95 lies among them, and it gains only from the lighter load. As long as the hit rate is below 95%,
# P95 is not that of a hit: a pretty mean, and the old tail. The measured columns also have the time of
# threads and the event loop.

# %% [markdown] key="breaks" lang="zh" partner="a54f572f"
# ## 什么会让它失灵
#
# **提示开头的时间戳。** 一行「现在是 9:01」放在最前，后面的一切都是新的。同样的内容，换个位置再数一遍。
#
# **多租户。** 命中快、不命中慢，计时就能猜出别人问过什么：问一句「我司将裁员」，看它是不是快得可疑。
# 给每个租户的块键加盐，不同的盐什么也不共享；代价是共同的规则每个租户各算一遍。

# %% [markdown] key="breaks" lang="en" partner="6154676b"
# ## What breaks it
#
# **A time stamp at the beginning.** One line, "it is 9:01 now", in front, and everything behind it is new. The
# cell counts the same content with the line in two places.
#
# **Several tenants.** Hits are fast and misses slow, so a stopwatch tells what others have asked: send "our
# company will lay off" and see whether it is suspiciously fast. Salt the block keys by tenant, and different
# salts share nothing; the price is that each tenant computes the common rules anew.

# %% key="breaks-code" tags=["nbval-check-output"]
rules, *questions = token_prompts([600] + [40] * 8, engine.vocabulary, seed=21)
stamps = token_prompts([8] * 8, engine.vocabulary, seed=22)
pairs = list(zip(stamps, questions, strict=True))
templates = {
    "time, rules, question": [stamp + rules + question for stamp, question in pairs],
    "rules, time, question": [rules + stamp + question for stamp, question in pairs],
}
for name, prompts in templates.items():
    found = caching.engine_hits(engine, prompts).sum(), caching.simulator_hits(prompts).sum()
    print(f"{name}: engine {found[0]:4d}, simulator {found[1]:4d} of {8 * 648} tokens found")
salts = [b"tenant a", b"tenant b"] * 4
found = caching.simulator_hits(prompts, salts=salts).sum()
print(f"the second, with a salt for each of two tenants: {found} found")

# %% [markdown] key="stampede" lang="zh" partner="d697b521"
# **踩踏。** 一条推送发出去，16 个人同时问同一句。普通的键值存储里还没有答案，16 个都去算；
# 「单飞」（single flight）让第一个去算，其余的等它。前缀缓存也有同样的毛病：同一步进来的请求谁也找不到谁的块。

# %% [markdown] key="stampede" lang="en" partner="9ee16229"
# **The stampede.** A push message goes out, and 16 people ask the same at once. A plain key-value store has no
# answer yet, so all 16 compute. With *single flight* the first computes and the others wait for it. The prefix
# cache has the same weakness: requests that come in with one step don't find each other's blocks.

# %% key="stampede-code"
crowd = cache_traffic.support_desk(1.0, 16, repeats=0.0, seed=31, **bot)
same = [RequestSpec(0.0, 640, 16)] * 16
print("16 equal requests at once      prompt tokens computed   answers computed   slowest (ms)")
for name, single_flight in (
    ("no result cache", None),
    ("plain key-value store", False),
    ("single flight", True),
):
    with ContinuousEngine.load("course-tiny", kv_cache_memory="128MiB", max_num_seqs=16) as served:
        served.warm_up()
        start = served.statistics
        front = served
        if single_flight is not None:
            front = RememberingEngine(served, ResultCache(2**26), single_flight)
        run = await serve(front, same, prompts=crowd.prompts[:1] * 16)
        read = served.statistics.prompt_tokens - start.prompt_tokens
        answered = (served.statistics.generation_tokens - start.generation_tokens) // 16
    print(f"{name:30s}{read:17d}{answered:19d}{run.latencies.max() * 1e3:16.0f}")

# %% [markdown] key="stale" lang="zh" partner="361bc5cb"
# **旧答案。** 退货政策改了，缓存不知道。TTL 给答案一个寿命，从存入时算起，命中不续命。一个问题每秒被问 $\lambda$ 次，
# TTL 为 $t$ 秒，每轮是一次未命中加上平均 $\lambda t$ 次命中，所以命中率是 $\lambda t/(1+\lambda t)$。TTL 该多长，由你能容忍多旧来定，不由命中率定。
#
# **采样。** 温度大于 0 又没有种子，同一句问两遍就是想要两个答案。`cache_key` 这时给 `None`，
# 不存也不查。前缀缓存没有这个问题：它存的是输入，不是输出。

# %% [markdown] key="stale" lang="en" partner="b8ba8db8"
# **Old answers.** The returns policy has changed, and the cache doesn't know. A TTL gives answers a life,
# counted from when they were stored and not renewed by hits. If a question comes $\lambda$ times per second
# and the TTL is $t$ seconds, each round is one miss and $\lambda t$ hits on average, so the hit rate is
# $\lambda t/(1+\lambda t)$. Set the TTL by how old an answer may be, not by the hit rate.
#
# **Sampling.** With a temperature above 0 and no seed, who asks twice wants two answers. `cache_key` gives
# `None` then: nothing is stored or looked up. A prefix cache has no such trouble: it keeps inputs, not
# outputs.

# %% key="stale-code" tags=["nbval-check-output"]
times = np.cumsum(streams(5, "times")["times"].exponential(20.0, 50_000))  # asked every 20 s on average
for ttl in (20, 60, 300):
    found = caching.result_cache_hits([0] * len(times), 1, times.tolist(), ttl).mean()
    print(f"TTL {ttl:3d} s: theory {ttl / 20 / (1 + ttl / 20):.3f}, the ResultCache {found:.3f}")
for params in (SamplingParams(), SamplingParams(temperature=0.8), SamplingParams(temperature=0.8, seed=1)):
    kept = cache_key("course-tiny", [1, 2, 3], params) is not None
    print(
        f"temperature {params.temperature}, seed {params.seed}: {'may be kept' if kept else 'is never kept'}"
    )

# %% [markdown] key="exercises" lang="zh" partner="88ccb8d6"
# ## 练习
#
# 写完运行单元格，`check` 会给出最小的失败例子和可能的原因。`hint("08.1")` 给提示。
#
# **08.1** 给每个**满的**块一个键。键是二元组：前一块的键（第一块是 `None`），和这一块的 token 元组。返回列表。

# %% [markdown] key="exercises" lang="en" partner="6faa4d6d"
# ## Exercises
#
# Run the cell when you have written your answer: `check` shows the smallest case that fails and the likely
# cause. `hint("08.1")` gives a hint.
#
# **08.1** A key for every **full** block. It is a pair: the key of the block before (`None` for the first), and
# the tuple of the block's tokens. Return a list.


# %% key="ex1" exercise="08.1" tags=["nbval-check-output"]
def my_block_keys(tokens, block_size):
    raise NotImplementedError


check("08.1", my_block_keys)


# %% key="ex1-solution" solution="08.1" tags=["nbval-check-output"]
def my_block_keys(tokens, block_size):
    keys = []
    for end in range(block_size, len(tokens) + 1, block_size):
        keys.append((keys[-1] if keys else None, tuple(tokens[end - block_size : end])))
    return keys


check("08.1", my_block_keys)

# %% [markdown] key="exercise2" lang="zh" partner="b5ade3d6"
# **08.2** `earlier` 是以前的提示，它们的满块都还在缓存里。新来的 `prompt` 还有多少 token 要算？

# %% [markdown] key="exercise2" lang="en" partner="0db9a4fa"
# **08.2** All full blocks of the prompts in `earlier` are still cached. How many tokens of a new `prompt` are left
# to compute?


# %% key="ex2" exercise="08.2" tags=["nbval-check-output"]
def tokens_to_compute(prompt, earlier, block_size):
    raise NotImplementedError


check("08.2", tokens_to_compute)


# %% key="ex2-solution" solution="08.2" tags=["nbval-check-output"]
def tokens_to_compute(prompt, earlier, block_size):
    known = {key for other in earlier for key in my_block_keys(other, block_size)}
    left = len(prompt)
    for key in my_block_keys(prompt[:-1], block_size):  # the last token must be computed
        if key not in known:
            break
        left -= block_size
    return left


check("08.2", tokens_to_compute)

# %% [markdown] key="exercise3" lang="zh" partner="9aa1093c"
# **08.3** 结果缓存前来了一串 `(time, key)`，时间递增。算一个答案要 `seconds` 秒；算好就存，存满 `ttl` 秒就忘。
# 每个请求的命运是什么：`"lead"`（去算）、`"join"`（等正在算的）还是 `"hit"`（现成的）？返回列表。

# %% [markdown] key="exercise3" lang="en" partner="10d7a528"
# **08.3** To a result cache come pairs `(time, key)` in order of time. An answer takes `seconds` to compute, is stored
# when it is ready, and forgotten `ttl` seconds later. What becomes of each request: `"lead"` (it computes),
# `"join"` (it waits for one under way) or `"hit"` (it is there)? Return a list.


# %% key="ex3" exercise="08.3" tags=["nbval-check-output"]
def fates(requests, seconds, ttl):
    raise NotImplementedError


check("08.3", fates)


# %% key="ex3-solution" solution="08.3" tags=["nbval-check-output"]
def fates(requests, seconds, ttl):
    ready, told = {}, []
    for now, key in requests:
        if key not in ready or now - ready[key] >= ttl:
            ready[key] = now + seconds
            told.append("lead")
        else:
            told.append("join" if now < ready[key] else "hit")
    return told


check("08.3", fates)

# %% [markdown] key="exercise4" lang="zh" partner="810839b7"
# **08.4** Che 近似：`popularity` 是各条目的请求占比，和为 1；LRU 缓存装得下其中 `capacity` 条（少于总数）。命中率是多少？

# %% [markdown] key="exercise4" lang="en" partner="b39bf473"
# **08.4** Che's approximation: `popularity` holds the items' shares of the requests, which add up to 1, and an LRU
# cache has room for `capacity` of them, fewer than all. What is the hit rate?


# %% key="ex4" exercise="08.4" tags=["nbval-check-output"]
def hit_rate(popularity, capacity):
    raise NotImplementedError


check("08.4", hit_rate)


# %% key="ex4-solution" solution="08.4" tags=["nbval-check-output"]
def hit_rate(popularity, capacity):
    p, low, high = np.array(popularity), 0.0, 1.0
    while (1 - np.exp(-p * high)).sum() < capacity:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        if (1 - np.exp(-p * middle)).sum() < capacity:
            low = middle
        else:
            high = middle
    return float(p @ (1 - np.exp(-p * high)))


check("08.4", hit_rate)

# %% [markdown] key="exercise5" lang="zh" partner="87f61b91"
# **08.5** 提示模板由几部分组成。`log` 是一列请求，每个是字典：部分的名字对应它的文本。按什么顺序拼，前缀缓存命中最多？返回名字的列表，
# 一个都不能少；不分高下时保持原来的次序。`judge` 随后按你的顺序拼 24 个提示，交给真引擎，也交给仿真。

# %% [markdown] key="exercise5" lang="en" partner="6a57f679"
# **08.5** A prompt template has several parts. `log` is a list of requests, each a dictionary from the name of a part
# to its text. In which order should the parts stand, so that the prefix cache finds most? Return the names, all
# of them; where two are equally good, leave them as they stand. Then `judge` puts 24 prompts together in your
# order and gives them to the real engine, and to the simulator.


# %% key="ex5" exercise="08.5" tags=["nbval-check-output"]
def prompt_order(log):
    raise NotImplementedError


check("08.5", prompt_order)


# %% key="ex5-solution" solution="08.5" tags=["nbval-check-output"]
def prompt_order(log):
    return sorted(log[0], key=lambda part: len({request[part] for request in log}))


check("08.5", prompt_order)

# %% key="judge"
print(judge(prompt_order, engine))

# %% key="close"
engine.shutdown()

# %% [markdown] key="summary" lang="zh" partner="d482a7a9"
# ## 星期一怎么做
#
# 1. 先打开前缀缓存，它不另花内存；用 `prefix_cache_hits` 除以 `prefix_cache_queries` 看命中率，再谈别的。
# 2. 改模板：不变的放最前，时间戳、用户名、问题放最后；对话按原来的 token 传回。
# 3. 用 Che 近似算寿命，和租户的请求间隔比，决定 KV 块留多少闲着；别忘了只问一次的块也占地方。
# 4. 结果缓存的上限是 $1/(1-r)$：先数重复率再动手；键里放采样参数，没有种子的采样不存，要单飞，TTL 按能容忍多旧来定。
# 5. 租户之间给块键加盐；报命中率时，把 P95 一起报。

# %% [markdown] key="summary" lang="en" partner="6f68db5a"
# ## What to do on Monday
#
# 1. Switch on the prefix cache first, as it takes no memory of its own; divide `prefix_cache_hits` by
#    `prefix_cache_queries` before you talk of anything else.
# 2. Change the template: what never changes goes first, time stamps, names and questions last; send
#    conversations back as the same tokens.
# 3. Get the lifetime from Che's approximation, compare it with the gaps between a tenant's requests, and choose
#    how many KV blocks stay idle; blocks that are asked for once take room as well.
# 4. A result cache can do $1/(1-r)$ at most, so count the repeats before you build it; put the sampling
#    parameters into the key, keep no samples without a seed, have single flight, and set the TTL by how old an
#    answer may be.
# 5. Salt the block keys between tenants; and quote hit rates together with P95.

# %% [markdown] key="references" lang="zh" partner="fbef0d9b"
# ## 参考文献
#
# - W. Kwon 等, *Efficient Memory Management for Large Language Model Serving with PagedAttention*, SOSP 2023,
#   arXiv:2309.06180。分页的 KV 缓存和共享的块。
# - L. Zheng 等, *SGLang: Efficient Execution of Structured Language Model Programs*, 2023, arXiv:2312.07104。
#   RadixAttention：前缀树和叶子优先的 LRU。
# - I. Gim 等, *Prompt Cache: Modular Attention Reuse for Low-Latency Inference*, 2023, arXiv:2311.04934。
# - H. Che, Y. Tung, Z. Wang, *Hierarchical Web Caching Systems: Modeling, Design and Experimental Results*,
#   IEEE JSAC, 2002。寿命的想法。
# - C. Fricker, P. Robert, J. Roberts, *A versatile and accurate approximation for LRU cache performance*, 2012,
#   arXiv:1202.3974。它为什么这么准。
# - L. Breslau 等, *Web Caching and Zipf-like Distributions: Evidence and Implications*, INFOCOM 1999。
# - C. Gu 等, *Auditing Prompt Caching in Language Model APIs*, ICML 2025, arXiv:2502.07776。计时侧信道，在公开的 API 上测出来的。

# %% [markdown] key="references" lang="en" partner="e1b6afd3"
# ## References
#
# - W. Kwon et al., *Efficient Memory Management for Large Language Model Serving with PagedAttention*, SOSP 2023,
#   arXiv:2309.06180. The KV cache in pages, and shared blocks.
# - L. Zheng et al., *SGLang: Efficient Execution of Structured Language Model Programs*, 2023, arXiv:2312.07104.
#   RadixAttention: the prefix tree, and LRU with leaves first.
# - I. Gim et al., *Prompt Cache: Modular Attention Reuse for Low-Latency Inference*, 2023, arXiv:2311.04934.
# - H. Che, Y. Tung, Z. Wang, *Hierarchical Web Caching Systems: Modeling, Design and Experimental Results*,
#   IEEE JSAC, 2002. The idea of the lifetime.
# - C. Fricker, P. Robert, J. Roberts, *A versatile and accurate approximation for LRU cache performance*, 2012,
#   arXiv:1202.3974. Why it is so accurate.
# - L. Breslau et al., *Web Caching and Zipf-like Distributions: Evidence and Implications*, INFOCOM 1999.
# - C. Gu et al., *Auditing Prompt Caching in Language Model APIs*, ICML 2025, arXiv:2502.07776. The timing side
#   channel, measured on public APIs.
