/** Chat templates for tests, written from what is known of the formats, and conversations to render. */
import type { ChatMessage, ChatOptions, Tool } from "../../../coordinator/prompt/chat-message.js";

export const glm4LikeTemplate = `[gMASK]<sop>
{%- if tools %}
<|system|>
# 可用工具
{%- for tool in tools %}


## {{ tool.function.name }}

{{ tool.function | tojson(indent=4, ensure_ascii=False) }}
在调用上述函数时，请使用 Json 格式表示调用的参数。
{%- endfor %}
{%- endif %}
{%- for message in messages %}
    {%- set role = 'observation' if message['role'] == 'tool' else message['role'] %}
    {%- if message.content or not message.tool_calls -%}
        <|{{ role }}|>{{ message.metadata if message.metadata else '' }}{{ '\\n' }}{{ message.content }}
    {%- endif %}
    {%- for call in message.tool_calls or [] -%}
        <|assistant|>{{ call.function.name }}{{ '\\n' }}{{ call.function.arguments | tojson }}
    {%- endfor %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}
`;

/** One that knows no calls and no role "tool": they come to it in the words of the format. */
export const glm4PlainTemplate = `[gMASK]<sop>
{%- if tools -%}
    <|system|>{{ '\\n# 可用工具' }}
    {%- for tool in tools -%}
        {%- set described = tool.function if tool.get('function') else tool -%}
        {{ '\\n\\n## ' + described.name + '\\n\\n' + described | tojson(indent=4, ensure_ascii=False) }}
        {{- '\\n在调用上述函数时，请使用 Json 格式表示调用的参数。' }}
    {%- endfor -%}
{%- endif -%}
{%- for message in messages if message.role in ['system', 'user', 'assistant', 'observation'] -%}
    <|{{ message.role }}|>{{ message.get('metadata', '') + '\\n' + message.content }}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}
`;

export const glm45LikeTemplate = `[gMASK]<sop>
{%- if tools -%}
<|system|>
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{% for tool in tools %}
{{ tool | tojson(ensure_ascii=False) }}
{% endfor %}
</tools>

For each function call, output the function name and arguments within the following XML format:
<tool_call>{function-name}
<arg_key>{arg-key-1}</arg_key>
<arg_value>{arg-value-1}</arg_value>
<arg_key>{arg-key-2}</arg_key>
<arg_value>{arg-value-2}</arg_value>
...
</tool_call>
{%- endif -%}
{%- set off = enable_thinking is defined and not enable_thinking -%}
{%- set ns = namespace(question=-1) -%}
{%- for m in messages -%}
    {%- if m.role == 'user' -%}{%- set ns.question = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for m in messages -%}
    {%- if m.role == 'user' -%}
        <|user|>{{ '\\n' + m.content }}
        {{- '/nothink' if off and not m.content.endswith('/nothink') else '' }}
    {%- elif m.role == 'assistant' -%}
        <|assistant|>{{ '\\n' }}<think>
        {%- if loop.index0 > ns.question and m.reasoning_content %}{{ m.reasoning_content }}{% endif -%}
        </think>
        {%- if m.content.strip() %}{{ '\\n' + m.content }}{% endif -%}
        {%- for call in m.tool_calls or [] -%}
            {{ '\\n<tool_call>' + call.function.name }}
            {%- for key, value in call.function.arguments.items() %}
                {{- '\\n<arg_key>' + key + '</arg_key>\\n<arg_value>' }}
                {{- value if value is string else value | tojson(ensure_ascii=False) }}
                {{- '</arg_value>' }}
            {%- endfor %}
            {{- '\\n</tool_call>' }}
        {%- endfor -%}
    {%- elif m.role == 'tool' -%}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}<|observation|>{% endif -%}
        {{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
    {%- elif m.role == 'system' -%}
        <|system|>{{ '\\n' + m.content }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    <|assistant|>
    {%- if off %}{{ '\\n<think></think>' }}{% endif -%}
{%- endif -%}
`;

export const weather: Tool = {
  type: "function",
  function: {
    name: "get_weather",
    description: "天气 of a city",
    parameters: {
      type: "object",
      properties: { city: { type: "string" }, days: { type: "integer" } },
      required: ["city"],
    },
  },
};

export const call = (name: string, given: Record<string, unknown>, id = "call_1") => ({
  id,
  name,
  arguments: given,
  argumentsText: JSON.stringify(given),
});

const user = (content: string): ChatMessage => ({ role: "user", content });

export const asking: ChatMessage[] = [
  { role: "system", content: "Be brief." },
  user("北京天气?"),
  {
    role: "assistant",
    content: "",
    reasoning: "I need the weather.",
    toolCalls: [call("get_weather", { city: "北京", days: 2 })],
  },
  { role: "tool", content: '{"sky": "clear"}', toolCallId: "call_1" },
];

/** Conversations that both ways to make a prompt must agree on, whatever stands in their texts. */
export function conversations(text: () => string): [ChatMessage[], ChatOptions][] {
  const tools = [weather];
  return [
    [[user(text())], {}],
    [[user(text()), { role: "assistant", content: text() }, user(text())], { enableThinking: false }],
    [
      [{ role: "system", content: text() }, user(text())],
      { addGenerationPrompt: false, enableThinking: true },
    ],
    [asking, { tools }],
    [
      [
        user(text()),
        { role: "assistant", content: text(), reasoning: text() },
        user(text()),
        {
          role: "assistant",
          content: text(),
          reasoning: text(),
          toolCalls: [
            call("f", { [`k${text()}`]: text(), list: [1, text(), null, { a: true }] }),
            call("g", {}, "call_2"),
          ],
        },
        { role: "tool", content: text(), toolCallId: "call_1" },
        { role: "tool", content: text(), toolCallId: "call_2" },
      ],
      {
        tools: [
          weather,
          {
            type: "function",
            function: {
              name: "f",
              description: text(),
              parameters: { type: "object", properties: { [`p${text()}`]: { enum: [text(), 1.5] } } },
            },
          },
        ],
      },
    ],
  ];
}
