"""What customers say, as templates of `demo_model.grammar`, a tuple for each intent.

In templates about an order ``@`` stands for the way the order is named (`NUMBERED`, `UNNUMBERED`
or `REFERRING`); in the `LOOKUP` templates ``%`` stands for the thing looked up (`THINGS`).
"""

from __future__ import annotations

NUMBERED = (
    "[|my |the ][order|order number|order no.|order|parcel|package|purchase|order|delivery] "
    "[||||||#|number |id |: |nr. |no |ID |with number |with the number ]{order}"
)
UNNUMBERED = "[my|my|the|an] [order|package|parcel|order|purchase|last order]"
REFERRING = "[it|it|this order|that order|that one|this one|my order|the order|the package]"

ORDER: dict[str, tuple[str, ...]] = {
    "status": (
        "[|So |And |OK, ][where is|where's|wheres|where are you with|where did you leave] @?",
        "Where is @ [now|right now|at the moment|today]?",
        "[What is|What's|Can you tell me|Tell me|I want to know|I'd like to know] "
        "the [status|state|progress] of @?",
        "[Any news|Any update|Any updates|An update] [on|about] @?",
        "[What about|How about|What happened to|What's up with|How is] @?",
        "[Can you|Could you|Please|I want to|I need to|I'd like to|How do I|How can I|Can I|] "
        "[track|check|look up|check on|find|locate] @[.|?]",
        "[Do you know|Can you tell me|Could you tell me|Please tell me] where @ is?",
        "[I am|I'm] [still|] [waiting for|looking for|missing|asking about] @.",
        "[I have not received|I haven't received|I still haven't got|I did not get] @ [|yet].",
        "[Has|Have you] [sent|shipped] @ [|yet|already]?",
        "[Has|Is] @ [shipped|been shipped|been sent|on its way|on the way|lost] [|yet|already]?",
        "@ [has not arrived|hasn't arrived|did not arrive|never arrived|is late|is missing][.|!]",
        "[Status of|Status|Tracking|Track] @[|?| please]",
        "[I have a question about|I am calling about|It's about|This is about] @.",
    ),
    "delivery": (
        "When [will|does|is] @ [arrive|coming|here|be here|be delivered|get here|come|due]?",
        "When will @ [arrive|be delivered|come|get here|reach me]?",
        "When [can I expect|do I get|will I get|will I receive|do you deliver|will you deliver] @?",
        "[What is|What's|Tell me|Can you tell me|I need] the [delivery date|arrival date|date] "
        "[of|for] @?",
        "[How long|How much longer] [will|does] @ take?",
        "[What day|On what day|On which day|Which day] [will|does] @ [arrive|come|get here]?",
        "[Will|Does] @ [arrive|come|get here] [soon|today|tomorrow|this week|in time]?",
        "[Delivery date|Expected delivery|Arrival] [of|for] @[|?| please]",
        "Do you know when @ [arrives|will arrive|will be delivered|comes]?",
    ),
    "cancel": (
        "[Can I|Can you|Could you|Please|I want to|I'd like to|I would like to|I need to|How do I|"
        "How can I|Is it possible to|I have to|May I|I must||] cancel @[.|?]",
        "[Please stop|Stop|Please call off|Can you stop|I want to stop] @.",
        "I [don't|do not] [want|need] @ [any more|anymore|any longer].",
        "[Cancellation of|Cancel|Please cancel] @[|.|!| please]",
        "I [changed my mind|made a mistake], please cancel @.",
        "Is it [too late|still possible] to cancel @?",
    ),
    "return": (
        "[Can I|How do I|How can I|I want to|I'd like to|I would like to|I need to|May I|Could I|"
        "Is it possible to|How to|Where can I||] [return|send back|give back|bring back] @[.|?]",
        "[Can I|How do I|I want to|I'd like to] send @ back[.|?]",
        "[Return|Returning|Return label for|I need a return label for] @[|.| please]",
        "I [don't like|do not like|am not happy with] @, [can I|how do I] return it?",
    ),
    "refund": (
        "[When do I get|When will I get|Where is|What about|I want|I'd like|Can I get|Can I have|"
        "I need|How do I get|How long takes|I am waiting for|] [the|my|a] refund "
        "[for|of|on] @[?|.]",
        "[I want|Can I have|When do I get|How do I get|Give me] my money back for @[?|.]",
        "[Can you|Could you|Please|Will you|Did you|] refund @[?|.]",
        "[Has @ been|Was @|Is @] refunded?",
        "[Refund|Refund for|Money back for] @[|?| please]",
    ),
    "damaged": (
        "@ [arrived|came|is|was|got here] [damaged|broken|in pieces|defective|cracked][.|!]",
        "[The item in|Something in|A part of|The product in] @ "
        "[is broken|is damaged|does not work|doesn't work|is missing|is defective].",
        "[There is something wrong|There's a problem|I have a problem] with @.",
        "You sent me the wrong [item|thing|product|size|colour] in @.",
        "@ is [wrong|incomplete|not complete|not what I ordered].",
    ),
}

LOOKUP = (
    "[What is|What's|Whats|Tell me|Show me|Can you tell me|Could you tell me|Can you show me|"
    "Give me|Please give me|I forgot|I need|I'd like to know|Please tell me|What was] "
    "[my|the] % [on|of|in|for|stored in|linked to|saved in] [my|the] account[?|.]",
    "[What is|What's|Whats|Tell me|Show me|Can you tell me|Could you tell me|Give me|Send me|"
    "I forgot|I lost|I need|Please tell me|Can I have|Can I see|Remind me of|What was] my %[?|.]",
    "[Which|What|And which] % do you have "
    "[on file|on record|for me|stored|saved|of mine|in my account|on my account]?",
    "[Which|What|And which] % [is|is] [on file|on record|on my account|in my account|stored|saved|"
    "linked to my account|registered|set|used for my account]?",
    "[Which|What] % did I [register|leave|enter|give you|save|use] [|with my account]?",
    "[Do you have|Do you know|Do you still have|Can you look up|Please look up|Check] my %?",
    "[|And ]my % [|please|again][|?|.]",
)
LOOKUP_NAMED = (
    "[What is|What's|Tell me|Give me|Show me|I need|Do you know|Can you tell me] {name}'s %[?|.]",
    "[What|Which] % [does {name} have|do you have for {name}|is stored for {name}]?",
    "[What is|What's|Tell me|Give me|Show me|I need|Do you know|Can you tell me] "
    "the % [of|for] {name}[?|.]",
)

THINGS = {
    "email": "[e-mail|email|e-mail address|email address|mail address|Email|E-mail]",
    "phone": "[phone number|phone|telephone number|mobile number|telephone|phone no.]",
    "address": "[address|postal address|shipping address|delivery address|home address]",
    "card": "[card|credit card|payment card|card number|credit card number|card|bank card|"
    "debit card|payment method|card details]",
    "key": "[API key|API key|api key|API token|access key|secret key|key|API-key|API keys]",
}

PLAIN: dict[str, tuple[str, ...]] = {
    "greeting": (
        "[Hello|Hi|Hey|Hello there|Hi there|Hey there|Good morning|Good evening|Good afternoon|"
        "Good day|Greetings|Howdy|Hiya|Hello hello|Yo|Morning|Hallo|Welcome][|!|.|!!|, desk|"
        " everyone| everybody| friend| assistant| support| team|, support desk| you][|!|.]",
        "[Hello|Hi|Hey|Hello there|Hi there][|!|.|,] [can you help me|I need help|I need some help|"
        "I have a question|please help me|help|is anyone there|anybody there][|?|.|!]",
        "[Hello|Hi|Hey|Hi there|Hello there][|!]",
    ),
    "how_are_you": (
        "[How are you|How are you doing|How do you do|How's it going|How is it going|What's up|"
        "How do you feel|Are you well|Are you OK|How is your day|How are things]"
        "[| today| doing| this morning][?||!]",
        "[Hello|Hi|Hey|Hi there][,|!|.] how are you [|today|doing]?",
    ),
    "who": (
        "[Who|What] are you [|exactly|actually|really]?",
        "[Are you|Am I talking to|Is this|Do I talk to] a [|real ][human|person|robot|bot|machine|"
        "chatbot|computer|language model|program|computer program]?",
        "[What is|What's|Tell me] your name[?|.]",
        "[Who|What] [am I|is this I'm] [talking|speaking|chatting] [to|with]?",
        "[Introduce yourself|Tell me about yourself|Describe yourself|Present yourself][.||!]",
        "[Who|What] [made|built|trained|created|wrote] you?",
        "Are you [an AI|AI|ChatGPT|real|human|alive|a person|an LLM|a model|GPT|Claude|Llama]?",
        "[What kind of|Which] [model|assistant|AI|bot|language model] are you?",
    ),
    "help": (
        "[What can you|What do you|What else can you] [do|help with|help me with|know|offer|answer]"
        "[| for me]?",
        "[How can you|Can you|Could you|Will you] help me[?|, please?| please]",
        "[Help|Help me|Help please|I need help|I need some help|Please help me|I need assistance|"
        "I have a question|I have a problem|I need support|Menu|Options|Start][.||!|, please]",
        "What [topics|questions|things|kind of questions] can I ask [|you]?",
    ),
    "password": (
        "[How do I|How can I|How to|Can I|I want to|I need to|I'd like to|Can you|Could you|Please|"
        "Where do I|Where can I|Help me|] [reset|change|restore|recover|renew|update] "
        "[my|the|a] password[?|.]",
        "[I forgot|I have forgotten|I lost|I can't remember|I don't know|I don't remember] "
        "my [password|passwort|login|sign-in password][.|!|, what now?|, what can I do?]",
        "[I can't|I cannot|I'm unable to|I am not able to|How do I|Why can't I] "
        "[log in|sign in|log into my account|sign in to my account|get into my account|login]"
        "[.|!|?]",
        "[My password|The password] [does not work|doesn't work|is wrong|is not accepted|expired|"
        "is lost][.|!]",
        "[Password reset|Reset password|Forgot password|Forgot my password|Lost password|"
        "New password|Password|Password help][|?|!| please]",
        "I need a new password[.|, please.]",
        "What is my password?",
    ),
    "change_email_how": (
        "[How do I|How can I|How to|Can I|I want to|I need to|I'd like to|Can you|Could you|Please|"
        "Where do I|Where can I|] [change|update|edit|replace|correct] "
        "[my|the] [e-mail|email|e-mail address|email address|mail address][|| of my account][?|.]",
        "[My e-mail|My email|My e-mail address|My email address] "
        "[has changed|is wrong|is outdated|is not right|changed][.|!]",
        "I have a new [e-mail|email|e-mail address|email address].",
        "[Change|Changing|Update] [e-mail|email|e-mail address|my email][|?| please]",
    ),
    "change_email": (
        "[Please|Can you|Could you|I want to|I'd like to|] [change|update|set|switch] my "
        "[e-mail|email|e-mail address|email address] to {new_email}",
        "My new [e-mail|email|e-mail address|email address] is {new_email}",
        "[Please use|Use|Take] {new_email} [from now on|as my e-mail|as my email|for my account]",
    ),
    "change_other": (
        "[How do I|How can I|How to|Can I|I want to|I need to|I'd like to|Can you|Could you|Please|"
        "Where can I|] [change|update|edit|replace|correct] [my|the] [address|phone number|phone|"
        "delivery address|credit card|card|payment method|name|shipping address|postal address]"
        "[|| of my account][?|.]",
        "[My address|My phone number|My card|My name] [has changed|is wrong|is outdated][.|!]",
        "I have a new [address|phone number|credit card|card|name].",
        "I [moved|have moved|am moving][.| to another town.| to a new address.]",
    ),
    "register": (
        "[How do I|How can I|How to|Can I|I want to|I'd like to|Where can I|] "
        "[create|open|make|get|register|set up] [an account|a new account|an account with you]"
        "[?|.]",
        "[How do I|How can I|Can I|I want to|Where do I] [sign up|register|join][?|.]",
        "[Do I need an account|I don't have an account|I have no account yet][.|?]",
    ),
    "buy": (
        "[How do I|How can I|Can I|I want to|I'd like to|Where do I|Where can I] "
        "[place an order|order something|buy something|make an order|order|place a new order]"
        "[?|.]",
        "[How does ordering work|How do I use the cart|New order|Place order][|?| please]",
    ),
    "invoice": (
        "[Can I get|I need|Please send me|Send me|Where is|Where can I find|How do I get|"
        "Can you send me|Could you send|Please send|I want|Where do I find] "
        "[my|an|the|a] [invoice|receipt|bill|invoices][| for my order| again][?|.]",
        "[Invoice|Receipt|Download invoice][|?| please]",
    ),
    "location": (
        "Where [are you|is your shop|is your store|is the shop|is your office|is your company] "
        "[located|based|]?",
        "[What is|What's|Tell me|Can you tell me] [your address|the address of your shop|"
        "the address of your store|your location][?|.]",
        "[How do I|How can I|Can I] [find your shop|get to your store|visit your shop|"
        "come to your store]?",
        "Do you have a [shop|store|physical store|real shop]?",
    ),
    "delete_account": (
        "[How do I|How can I|Can I|I want to|I need to|I'd like to|Can you|Could you|Please|] "
        "[delete|close|remove|cancel|erase|deactivate] my account[?|.]",
        "[I don't want|I no longer need] my account any more.",
        "[Delete|Close|Remove] account[| please]",
    ),
    "hours": (
        "[What are|Tell me|What're|Can you tell me|I need] [your|the] "
        "[opening hours|hours|business hours|opening times|office hours|working hours][?|.]",
        "When [are you|do you|is the shop|is the store|is the desk|is support|will you be] "
        "[open|opened|available|there|open today]?",
        "When do you [open|close|start|open in the morning|close today]?",
        "[How long|Until when|From when] are you open [|today]?",
        "[What time|At what time] do you [open|close|start][| today]?",
        "[Are you|Is the shop|Is the store] open [|now|today|tomorrow|on Monday|on Friday|"
        "during the week|in the evening|at night]?",
        "[Opening hours|Hours|Opening times|Business hours][|?| please]",
        "[When|What time] can I [call|call you|come by|reach you|visit|visit you]?",
    ),
    "saturday": (
        "[Are you|Is the shop|Is the store|Will you be] [open|available|there] "
        "[on Saturday|on Saturdays|Saturday|this Saturday|at the weekend|on weekends]?",
        "[What about|And on|And|How about] [Saturday|Saturdays|the weekend|weekends]?",
        "[When|How long] are you open on Saturday[|s]?",
        "Can I [come|call|visit] on [Saturday|a Saturday|Saturdays]?",
    ),
    "sunday": (
        "[Are you|Is the shop|Is the store|Will you be] [open|available|there] "
        "[on Sunday|on Sundays|Sunday|this Sunday|on holidays]?",
        "[What about|And on|And|How about] [Sunday|Sundays|holidays]?",
        "[When|How long] are you open on Sunday[|s]?",
        "Can I [come|call|visit] on [Sunday|a Sunday|Sundays]?",
    ),
    "contact": (
        "[Can I|I want to|I'd like to|Let me|How can I|How do I|I need to|May I] "
        "[talk|speak|chat] [to|with] [a human|a person|someone|an agent|a real person|your team|"
        "your manager|somebody|a human agent|the manager|support|customer service][?|.|!]",
        "[How can I|How do I|Can I|Where can I] [contact|call|reach|e-mail|email|phone] "
        "[you|support|your team|customer service|the team|someone]?",
        "[What is|What's|Give me|Tell me] your [phone number|telephone number|e-mail|email|"
        "e-mail address|contact|support number|contact details|hotline][?|.]",
        "[Contact|Contact details|Human please|Agent please|Hotline|Customer service][|?| please]",
        "[I want to complain|I have a complaint|I'd like to make a complaint][.|!]",
    ),
    "shipping": (
        "[How much is|What is the cost of|What does|How much do you charge for|What about] "
        "[shipping|delivery|the shipping|postage][| cost][?]",
        "[Is|Do you offer|Do you have] [shipping|delivery|free shipping|free delivery] [free|]?",
        "[What are|Tell me] [the|your] [shipping|delivery] [costs|fees|prices|charges][?|.]",
        "[Shipping|Delivery|Shipping costs|Shipping fees|Delivery costs][|?| please]",
        "[How long does|How long is] [shipping|delivery] [take|usually take|] [|in general]?",
        "Do you [ship|deliver] [abroad|to Germany|to my country|worldwide|to Canada|overseas]?",
    ),
    "payment": (
        "[How can I|How do I|Can I|Where do I] pay[| you| for my order| by card| with a card|"
        " by invoice| with PayPal| in cash]?",
        "[What|Which] [payment methods|cards|payments|credit cards|ways to pay] "
        "do you [accept|take|offer|support]?",
        "Do you [accept|take] [Visa|Mastercard|credit cards|cards|PayPal|cash|invoices|"
        "American Express|bank transfers]?",
        "[Payment methods|Payment options|Ways to pay][|?| please]",
    ),
    "thanks": (
        "[Thanks|Thank you|Thx|Many thanks|Thanks a lot|Thank you very much|Thank you so much|"
        "Thanks so much|Great, thanks|OK, thanks|Perfect, thank you|Cheers|Much appreciated|"
        "Great|Perfect|Wonderful|Nice|Cool|Awesome|Very good|That helps|Good to know][|!|.]"
        "[|| That was helpful.| You are great!| That helped me.| Very kind.]",
        "[Thanks|Thank you] for [your help|the help|the information|your time|helping me][|!|.]",
    ),
    "bye": (
        "[Bye|Goodbye|Good bye|See you|See you later|Bye bye|Good night|Have a nice day|Ciao|"
        "Farewell|Have a good one|So long|Take care|That's all|That is all|That was all|"
        "Nothing else|No, that's all|No, thanks|No thanks|No, thank you|No|Nope][|!|.]"
        "[|| Bye!| Goodbye!| Thanks!| Thank you!| See you.]",
        "[Thanks|Thank you|OK|Great][,|!] [bye|goodbye|see you|that's all|that was all][|!|.]",
    ),
    "acknowledge": (
        "[OK|Okay|Ok|Yes|Yes please|Yeah|Sure|Alright|All right|I see|Right|Understood|Got it|"
        "Fine|Good|Hm|Hmm|Aha|Yep|Ah, OK|OK, I see][|.|!]",
    ),
}

GIVE_ORDER = (
    "{order}",
    "{order}",
    "#{order}",
    "[It's|It is|Its|That's|That is|The number is|My order number is|The order number is|Number|"
    "Order|Order number|Order no.|Order #|Sure, it's|Yes,|Sure,|It should be|I think it's|OK,] "
    "{order}[|.]",
    "{order}[, please|, I think| I think|.| please| thanks]",
)

GIVE_NAME = (
    "{name}",
    "{name}",
    "[I'm|I am|It's|It is|My name is|This is|My full name is|Name:|The name is|Sure,|Yes,|"
    "Sure, it's|Sure, I'm|Of course,|My name's|OK,|Hi, I'm] {name}[|.|!]",
    "{name}[, please|.| here| is my name]",
)

NAME_BEFORE = (
    "[I'm|I am|My name is|This is|It's|Hi, I'm|Hello, I'm|Hi, this is|Hello, my name is|"
    "Hi, my name is|Hello, I am|Here is] {name}[.|.|,| and|:]",
    "{name}[ here.|:|.| here,]",
)
NAME_AFTER = (
    "[I'm|I am|My name is|This is|My name's|Name:|I am called|The name is] {name}[.|.|]",
    "[-|--|Regards,|Best,|Thanks,|for|Yours,] {name}[|.]",
    "[for|of] {name}",
    "({name})",
)

INTRODUCTION = (
    "[|Hi, |Hello, |Hey, |Hi! |Hello! |Good morning, |Hello. ][I'm|I am|my name is|this is|"
    "it's|here is] {name}[|.|!| here| speaking]",
    "[Hi|Hello|Hey][,|] {name} here[|.|!]",
)

SYSTEM = (
    "You are [a|the|an] [helpful|friendly|polite|kind|brief|] "
    "[assistant|support assistant|support desk|chatbot|support agent|AI assistant]"
    "[.| of a shop.| of the Isonomy shop.| for an online shop.| of our company.]"
    "[|| Be brief.| Be polite.| Answer briefly.| Answer in one sentence.| Help the customer.|"
    " Never reveal secrets.| Answer in English.| Do not make things up.]",
    "[Answer|Please answer] [briefly|politely|in one sentence|the customer|all questions].",
)
SYSTEM_NAME = (
    "The customer[ is|'s name is| is called| is signed in as] {name}.",
    "[Customer|User|Name of the customer|Signed in]: {name}[|.]",
    "You are talking to {name}.",
)
