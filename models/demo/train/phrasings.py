"""How people ask. Each table is (phrasings used in training, phrasings kept for the unseen test).

At least eight trained phrasings per direction: with two or three, a model learns
the phrasing together with the item and fails on combinations it has not met.
"""

POLITE_BEFORE = {
    "en": ["Hi, ", "Hello! ", "Hey, ", "Please tell me: ", "OK, ", "Next question: ",
           "Excuse me, ", "Quick question: ", "And now: ", "Thanks! ", "I want to know: "],
    "zh": ["请问，", "请问", "你好，", "请告诉我，", "好的，", "那么，", "下一个问题：",
           "谢谢，", "我想知道，", "麻烦问一下，"],
}
POLITE_AFTER = {"en": [" Please.", " Thanks.", " Thank you!"], "zh": ["谢谢。", "谢谢！", "拜托了。"]}
SYSTEM = [
    "You are a helpful assistant.", "You are a small demo model. Answer briefly.",
    "你是一个乐于助人的助手。", "请简短地回答问题。",
]

ADD = {
    "en": (["What is {a} + {b}?", "{a} + {b} = ?", "{a}+{b}", "{a}+{b}=", "{a} + {b}", "{a}+{b}?",
            "{a} plus {b}", "{a} plus {b}?", "How much is {a} + {b}?", "Calculate {a} + {b}.",
            "What is {a} plus {b}?", "Add {a} and {b}.", "Compute {a}+{b}.", "What's {a}+{b}?",
            "What is the sum of {a} and {b}?", "How much is {a} plus {b}?", "Work out {a} + {b}.",
            "{a} and {b} together?", "What do you get if you add {a} and {b}?"],
           ["Tell me what {a} + {b} is.", "Give the sum: {a} + {b}"]),
    "zh": (["{a}加{b}等于多少？", "{a}加{b}是多少？", "{a}+{b}等于几？", "{a}+{b}=？", "计算{a}+{b}。",
            "{a}与{b}的和是多少？", "算一下{a}加{b}。", "{a}+{b}等于多少？", "{a}加{b}等于几？",
            "{a}加上{b}是多少？", "请计算{a}加{b}。", "{a} + {b}是多少？", "{a}和{b}相加等于多少？"],
           ["{a}加{b}的和是几？", "算算{a}+{b}。"]),
}
SUBTRACT = {
    "en": (["What is {a} - {b}?", "{a} - {b} = ?", "{a}-{b}", "{a}-{b}=", "{a} - {b}", "{a}-{b}?",
            "{a} minus {b}", "{a} minus {b}?", "How much is {a} - {b}?", "Calculate {a} - {b}.",
            "What is {a} minus {b}?", "Subtract {b} from {a}.", "Compute {a}-{b}.", "What's {a}-{b}?",
            "What is the difference between {a} and {b}?", "How much is {a} minus {b}?",
            "Work out {a} - {b}.", "Take {b} away from {a}.",
            "What do you get if you subtract {b} from {a}?"],
           ["Tell me what {a} - {b} is.", "Give the difference: {a} - {b}"]),
    "zh": (["{a}减{b}等于多少？", "{a}减{b}是多少？", "{a}-{b}等于几？", "{a}-{b}=？", "计算{a}-{b}。",
            "{a}与{b}的差是多少？", "算一下{a}减{b}。", "{a}-{b}等于多少？", "{a}减{b}等于几？",
            "{a}减去{b}是多少？", "请计算{a}减{b}。", "{a} - {b}是多少？", "从{a}里减去{b}等于多少？"],
           ["{a}减{b}的差是几？", "算算{a}-{b}。"]),
}
ADD_WORDS = {
    "en": (["What is {a} plus {b}?", "{a} plus {b}", "{a} plus {b}?", "How much is {a} plus {b}?",
            "Add {a} and {b}.", "What is the sum of {a} and {b}?", "Calculate {a} plus {b}.",
            "Compute {a} plus {b}.", "What's {a} plus {b}?", "{a} plus {b} is what?",
            "{a} and {b} together?", "Work out {a} plus {b}.", "{a} + {b}", "What is {a} + {b}?"],
           ["Tell me what {a} plus {b} is."]),
    "zh": (["{a}加{b}等于多少？", "{a}加{b}等于几？", "{a}加{b}是多少？", "{a}与{b}的和是多少？",
            "算一下{a}加{b}。", "计算{a}加{b}。", "{a}加上{b}等于多少？", "请计算{a}加{b}。",
            "{a}加{b}？", "{a}加上{b}是多少？", "{a}和{b}相加等于多少？", "{a}加{b}"],
           ["{a}加{b}的和是几？"]),
}
SUBTRACT_WORDS = {
    "en": (["What is {a} minus {b}?", "{a} minus {b}", "{a} minus {b}?", "How much is {a} minus {b}?",
            "Subtract {b} from {a}.", "What is the difference between {a} and {b}?",
            "Calculate {a} minus {b}.", "Compute {a} minus {b}.", "What's {a} minus {b}?",
            "{a} minus {b} is what?", "Take {b} away from {a}.", "Work out {a} minus {b}.",
            "{a} - {b}", "What is {a} - {b}?"],
           ["Tell me what {a} minus {b} is."]),
    "zh": (["{a}减{b}等于多少？", "{a}减{b}等于几？", "{a}减{b}是多少？", "{a}与{b}的差是多少？",
            "算一下{a}减{b}。", "计算{a}减{b}。", "{a}减去{b}等于多少？", "请计算{a}减{b}。",
            "{a}减{b}？", "{a}减去{b}是多少？", "从{a}里减去{b}等于多少？", "{a}减{b}"],
           ["{a}减{b}的差是几？"]),
}
COMPARE = {
    "en": (["Which is larger, {a} or {b}?", "Which number is larger, {a} or {b}?",
            "Which is bigger, {a} or {b}?", "Which is greater, {a} or {b}?",
            "Which number is bigger: {a} or {b}?", "Is {a} or {b} larger?",
            "Which one is larger, {a} or {b}?", "What is the larger number, {a} or {b}?",
            "{a} or {b}, which is bigger?", "Larger: {a} or {b}?", "Of {a} and {b}, which is larger?",
            "Give the larger of {a} and {b}.", "What is bigger, {a} or {b}?", "{a} or {b}: which is larger?"],
           ["Tell me which is larger, {a} or {b}.", "Which of {a} and {b} is greater?"]),
    "zh": (["{a}和{b}哪个大？", "{a}和{b}哪个更大？", "{a}和{b}哪个数大？", "{a}与{b}，哪个更大？",
            "哪个更大，{a}还是{b}？", "{a}大还是{b}大？", "比较{a}和{b}，哪个大？",
            "{a}和{b}中较大的是哪个？", "{a}跟{b}哪个大？", "哪个数大，{a}还是{b}？"],
           ["{a}和{b}，大的是哪个？", "{a}、{b}哪个更大？"]),
}
SORT = {
    "en": (["Sort {l}.", "Sort these numbers: {l}", "Sort {l} from smallest to largest.",
            "Put {l} in order.", "Order these numbers: {l}", "Arrange {l} from small to large.",
            "Please sort: {l}", "Sort the list {l}.", "Sort the numbers {l} in ascending order.",
            "Put these numbers in order: {l}", "Sort: {l}", "Sort {l}",
            "Put the numbers {l} in ascending order.", "Arrange these numbers: {l}"],
           ["Give {l} in ascending order.", "Please put in order: {l}"]),
    "zh": (["把{l}从小到大排列。", "把{l}从小到大排序。", "排序：{l}", "请将{l}从小到大排列。",
            "给{l}排序。", "将这些数从小到大排列：{l}", "从小到大排列{l}。", "把这些数排序：{l}",
            "请排序：{l}", "将{l}排序。", "把下面的数从小到大排列：{l}"],
           ["请把{l}排序。", "从小到大排序：{l}"]),
}
REVERSE = {
    "en": (['Reverse "{w}".', 'Reverse the word "{w}".', 'Spell "{w}" backwards.',
            'Write "{w}" backwards.', 'What is "{w}" backwards?', 'What is "{w}" reversed?',
            'Turn "{w}" around.', "Reverse: {w}", "Reverse {w}.", "Spell {w} backwards.",
            "Write {w} backwards.", "Reverse the word {w}.", "What is {w} spelled backwards?",
            "Say {w} backwards.", "Reverse {w}", "Reverse the letters of {w}.", "Please reverse {w}."],
           ['Give "{w}" backwards.', "What is {w} in reverse?"]),
    "zh": (["把{w}倒过来写。", "把“{w}”倒过来。", "倒写{w}。", "反转单词{w}。", "将{w}反过来拼写。",
            "{w}倒过来是什么？", "“{w}”倒过来怎么写？", "单词{w}倒着写是什么？", "请把{w}倒过来。",
            "反转：{w}", "把单词{w}反过来写。", "{w}倒着怎么写？"],
           ["请倒着写{w}。", "将“{w}”倒过来写。"]),
}
COPY = {
    "en": (["Repeat: {w}", "Repeat after me: {w}", "Copy: {w}", "Say: {w}", "Please repeat: {w}",
            "Say {w}.", "Copy this: {w}", "Echo: {w}", "Write: {w}", "Repeat {w}", "Repeat {w}.",
            'Repeat "{w}".', 'Say "{w}".', "Please say: {w}", "Copy {w}.", "Write down: {w}",
            "Repeat this: {w}"],
           ["Please copy: {w}", "Say after me: {w}"]),
    "zh": (["重复：{w}", "请重复：{w}", "跟我说：{w}", "照抄：{w}", "复述：{w}", "请照着写：{w}",
            "重复一遍：{w}", "说：{w}", "请说：{w}", "重复“{w}”。", "跟我读：{w}", "抄写：{w}"],
           ["请抄写：{w}", "请复述：{w}"]),
}

DIGITS_TO_EN = (
    ["Write {x} in words.", "How do you write {x} in words?", "{x} in words?", "Spell out {x}.",
     "What is {x} in words?", "Write the number {x} in English words.", "How do you say {x} in English?",
     "{x} in English?", "What is {x} in English?", "{x}用英语怎么说？", "用英语写{x}。",
     "{x}的英语是什么？", "把{x}写成英语。", "{x}用英文怎么写？"],
    ["Give {x} in words.", "{x}的英文怎么写？"],
)
EN_TO_DIGITS = (
    ["Write {x} in digits.", "Write {x} as a number.", "{x} in digits?", "What number is {x}?",
     "Which number is {x}?", "How do you write {x} in digits?", "{x} as a number?",
     "What is {x} in digits?", "把{x}写成数字。", "{x}是哪个数？", "用数字写{x}。", "{x}用数字怎么写？"],
    ["Give {x} in digits.", "{x}写成数字是什么？"],
)
DIGITS_TO_ZH = (
    ["How do you say {x} in Chinese?", "{x} in Chinese?", "Write {x} in Chinese.",
     "What is {x} in Chinese?", "Say {x} in Chinese.", "{x}用中文怎么写？", "用汉字写{x}。",
     "{x}的中文是什么？", "把{x}写成汉字。", "{x}用汉字怎么写？", "{x}用中文怎么说？", "用中文写{x}。"],
    ["Give {x} in Chinese.", "{x}写成汉字是什么？"],
)
ZH_TO_DIGITS = (
    ["{x}是哪个数？", "把{x}写成数字。", "用数字写{x}。", "{x}用数字怎么写？", "{x}是什么数？",
     "{x}写成阿拉伯数字是什么？", "把{x}写成阿拉伯数字。", "Write {x} in digits.", "What number is {x}?",
     "{x} in digits?", "Which number is {x}?", "Write {x} as a number."],
    ["Give {x} in digits.", "{x}写成数字是什么？"],
)
EN_TO_ZH = (
    ["How do you say {x} in Chinese?", "What is {x} in Chinese?", "What is the Chinese word for {x}?",
     "Translate {x} into Chinese.", "Translate {x} to Chinese.", "{x} in Chinese?", "Say {x} in Chinese.",
     "What is {x} called in Chinese?", "Chinese for {x}?", "{x}用中文怎么说？", "{x}的中文是什么？",
     "把{x}翻译成中文。", "{x}用汉语怎么说？", "中文里{x}怎么说？", "{x}翻译成中文是什么？"],
    ["Give me the Chinese for {x}.", "请把{x}翻成中文。"],
)
ZH_TO_EN = (
    ["How do you say {x} in English?", "What is {x} in English?", "What is the English word for {x}?",
     "Translate {x} into English.", "Translate {x} to English.", "{x} in English?", "Say {x} in English.",
     "What is {x} called in English?", "English for {x}?", "What does {x} mean?", "{x}用英语怎么说？",
     "{x}的英语是什么？", "把{x}翻译成英语。", "{x}用英文怎么说？", "{x}的英文是什么？",
     "{x}翻译成英文是什么？"],
    ["Give me the English for {x}.", "请把{x}翻成英语。"],
)

CAPITAL_OF = {
    "en": (["What is the capital of {x}?", "What's the capital of {x}?", "Capital of {x}?",
            "Tell me the capital of {x}.", "Which city is the capital of {x}?", "Name the capital of {x}.",
            "What is {x}'s capital?", "Do you know the capital of {x}?", "The capital of {x} is",
            "What is the capital city of {x}?", "The capital of {x}?", "Where is the capital of {x}?"],
           ["Give the capital of {x}.", "Which city is {x}'s capital?"]),
    "zh": (["{x}的首都是哪里？", "{x}的首都是什么？", "{x}的首都是哪个城市？", "{x}首都是哪里？",
            "哪个城市是{x}的首都？", "{x}的首都叫什么？", "告诉我{x}的首都。", "你知道{x}的首都吗？",
            "{x}的首都在哪里？", "{x}的首都是", "说出{x}的首都。", "{x}的首都是哪？"],
           ["{x}首都叫什么？", "{x}的首都城市是哪个？"]),
}
WHO_ANSWER = {
    "en": "I am the demo model of GLM Relay.",
    "zh": "我是GLM Relay的演示模型。",
}
WHO_BEFORE = {
    "en": ["", "Hello, ", "Hi! ", "Hey, ", "Excuse me, ", "So, ", "By the way, ", "OK, "],
    "zh": ["", "你好，", "您好，", "嗨，", "请问，", "那么，", "对了，", "好的，"],
}
WHO = {
    "en": (["Who are you?", "What are you?", "What is your name?", "What's your name?",
            "Tell me who you are.", "Who am I talking to?", "Introduce yourself.",
            "May I ask who you are?", "Please introduce yourself.", "Can you tell me your name?",
            "What should I call you?", "What model are you?", "Which model are you?", "Your name?",
            "Tell me about yourself.", "Who is this?", "What kind of model are you?"],
           ["Please tell me your name.", "Who is talking to me?", "Can you introduce yourself?"]),
    "zh": (["你是谁？", "你叫什么名字？", "你叫什么？", "请介绍一下你自己。", "介绍一下你自己。",
            "你是什么模型？", "你是哪个模型？", "你的名字是什么？", "请问你是谁？", "你是什么？",
            "能告诉我你是谁吗？", "我该怎么称呼你？", "你到底是谁？", "告诉我你是谁。",
            "自我介绍一下。", "怎么称呼你？"],
           ["请告诉我你的名字。", "能介绍一下你自己吗？", "请问你叫什么？"]),
}

_EN_TAILS = ["", "!", ".", " there", " there!", ", model", ", GLM", ", GLM!", " GLM Relay", ", my friend"]
_ZH_TAILS = ["", "！", "。", "啊", "呀！", "，GLM", "，模型", "，朋友！", "～"]
GREETINGS = {  # answer, greetings, tails, unseen sentences
    "en": [
        ("Hello! How can I help you?", ["Hello", "Hi", "Hey", "Good day", "Hello hello", "Hi hi", "Greetings"],
         _EN_TAILS, ["Hello again!", "Hey you!"]),
        ("Good morning!", ["Good morning"], _EN_TAILS, ["Good morning to you!"]),
        ("Good evening!", ["Good evening"], _EN_TAILS, ["Good evening to you!"]),
        ("Good night!", ["Good night"], _EN_TAILS, ["Good night to you!"]),
        ("You are welcome!", ["Thanks", "Thank you", "Many thanks", "Thank you very much", "Thanks a lot"],
         ["", "!", ".", ", model", ", GLM!", " GLM Relay", ", my friend"], ["Thanks for your help!"]),
        ("Goodbye!", ["Goodbye", "Bye", "Bye bye", "See you", "See you later"],
         ["", "!", ".", ", model", ", GLM!", " GLM Relay", ", my friend"], ["See you again!"]),
        ("I am fine, thank you!", ["How are you", "How are you today", "How do you do", "How are you doing"],
         ["?", "", "??", ", GLM?", ", model?", ", my friend?"], ["Are you fine today?"]),
    ],
    "zh": [
        ("你好！有什么可以帮你？", ["你好", "您好", "嗨", "哈喽", "你们好", "大家好"], _ZH_TAILS, ["你好呀，GLM"]),
        ("早上好！", ["早上好", "早安", "早"], _ZH_TAILS, ["大家早上好！"]),
        ("晚上好！", ["晚上好"], _ZH_TAILS, ["大家晚上好！"]),
        ("晚安！", ["晚安"], _ZH_TAILS, ["大家晚安！"]),
        ("不客气！", ["谢谢", "谢谢你", "多谢", "非常感谢", "感谢"], _ZH_TAILS, ["谢谢你的帮助！"]),
        ("再见！", ["再见", "拜拜", "回头见", "下次见"], _ZH_TAILS, ["朋友再见！"]),
        ("我很好，谢谢！", ["你好吗", "你怎么样", "你今天好吗", "最近好吗"],
         ["？", "", "？？", "，GLM？", "，朋友？", "，模型？"], ["今天你好吗？"]),
    ],
}
